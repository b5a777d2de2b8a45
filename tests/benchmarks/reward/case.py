"""One ranking: a prompt with K responses, all of the same length, no ties."""

from dataclasses import dataclass

import torch

from stages.reward.batches import RankedPrompt
from tests.benchmarks.cases import Written


@dataclass(frozen=True, slots=True)
class RewardCase(Written):
    """Lengths in tokens."""

    responses: int
    prompt: int = 128
    response: int = 64
    pairs_at_once: int = 6


def ranked_prompt(case: RewardCase, *, seed: int) -> RankedPrompt:
    """Random tokens; the first response is the best, the last the worst."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> tuple[int, ...]:
        drawn = torch.randint(2, case.shape.vocabulary, (length,), generator=generator)
        return tuple(drawn.tolist())

    responses = tuple(text(case.response) for _ in range(case.responses))
    return RankedPrompt(
        task=str(seed),
        conversation=str(seed),
        prompt=text(case.prompt),
        responses=responses,
        models=("random",) * case.responses,
        annotators=("a",),
        ranks=(tuple(range(1, case.responses + 1)),),
    )
