"""K responses to each of some prompts of one length, so that neither side pads a prompt."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tests.benchmarks.cases import Shape


@dataclass(frozen=True, slots=True)
class SamplingCase:
    """Lengths in tokens."""

    name: str
    shape: Shape
    prompts: int = 8
    responses: int = 4
    prompt: int = 64
    limit: int = 64
    mean_response: int | None = 21

    def write(self, path: Path) -> None:
        """As JSON, for the workers."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "SamplingCase":
        """What `write` wrote."""
        told = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**told, "shape": Shape(**told["shape"])})


def asked_prompts(case: SamplingCase) -> list[list[int]]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(
        2, case.shape.vocabulary, (case.prompts, case.prompt), generator=generator
    )
    found: list[list[int]] = ids_BL.tolist()
    return found
