"""One ranking: a prompt with K responses, all of the same length, no ties."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from stages.ranked_prompts import RankedPrompt
from tests.benchmarks.cases import Shape


@dataclass(frozen=True, slots=True)
class RewardCase:
    """Lengths in tokens."""

    name: str
    shape: Shape
    responses: int
    prompt: int = 128
    response: int = 64
    pairs_at_once: int = 6

    def write(self, path: Path) -> None:
        """As JSON, for the workers."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "RewardCase":
        """What `write` wrote."""
        told = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**told, "shape": Shape(**told["shape"])})


def ranked_prompt(case: RewardCase, *, seed: int) -> RankedPrompt:
    """Random tokens; the first response is the best, the last the worst."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> tuple[int, ...]:
        drawn = torch.randint(2, case.shape.vocabulary, (length,), generator=generator)
        return tuple(drawn.tolist())

    responses = tuple(text(case.response) for _ in range(case.responses))
    return RankedPrompt(
        task=str(seed),
        said=str(seed),
        prompt=text(case.prompt),
        responses=responses,
        models=("random",) * case.responses,
        annotators=("a",),
        ranks=(tuple(range(1, case.responses + 1)),),
    )
