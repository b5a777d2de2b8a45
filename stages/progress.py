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
