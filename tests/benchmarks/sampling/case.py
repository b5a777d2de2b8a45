"""K responses to each of some prompts of one length, so that neither side pads a prompt."""

from dataclasses import dataclass

import torch

from tests.benchmarks.cases import Written


@dataclass(frozen=True, slots=True)
class SamplingCase(Written):
    """Lengths in tokens."""

    prompts: int = 8
    responses: int = 4
    prompt: int = 64
    limit: int = 64
    mean_response: int | None = 21
    device: str = "cpu"  # or "cuda": of ours, in the precision of the verbs' default


def prompts_of(case: SamplingCase) -> list[list[int]]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(
        2, case.shape.vocabulary, (case.prompts, case.prompt), generator=generator
    )
    prompts: list[list[int]] = ids_BL.tolist()
    return prompts
