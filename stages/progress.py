"""How a stage tells what it is doing, without knowing who listens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Step:
    """One step done: `metrics` are named `area/quantity`, e.g. `ppo/kl_nats`."""

    done: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Step], None]


def silent(_: Step) -> None:
    """A listener for callers that need no progress."""


def part_of(report: Report, part: int, parts: int) -> Report:
    """Tell the steps of one of `parts` equally long runs as steps of all; their numbers stay."""

    def tell(step: Step) -> None:
        report(Step(part * step.total + step.done, parts * step.total))

    return tell
