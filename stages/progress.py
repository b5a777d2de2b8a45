"""The progress that a stage reports, whoever receives it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Step:
    """One step done: `metrics` are named `area/quantity`, e.g. `ppo/kl_nats`.

    Within a stage `done` never falls and `total` never shrinks. Where `total` is 0 the step is not
    about the count. `doing` are words for work that has no count of its own, until the next step.
    """

    done: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    doing: str = ""


Report = Callable[[Step], None]


def silent(_: Step) -> None:
    """Ignore a step, for callers that need no progress."""


def announce(report: Report, doing: str) -> None:
    """Report what a stage is doing while no step is counted, e.g. "loading the policy"."""
    report(Step(0, 0, doing=doing))


def counted(report: Report, doing: str) -> Report:
    """Announce work, and report its steps in words: "scoring demonstrations, 64 of 400"."""
    announce(report, doing)

    def report_count(step: Step) -> None:
        announce(report, f"{doing}, {step.done} of {step.total}")

    return report_count


def part_of(report: Report, part: int, parts: int, name: str) -> Report:
    """Report the steps of one of `parts` runs in words: they are not the stage's own steps."""

    def report_part(step: Step) -> None:
        doing = step.doing or f"step {step.done} of {step.total}"
        announce(report, f"{name} {part + 1} of {parts}: {doing}")

    return report_part
