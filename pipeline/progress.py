"""What a person sees while stages run: a live display on stderr, or lines where it is no terminal.

✓ sft        ━━━━━━━━━━━━━━━━━━━━ 96/96   0:41
▸ ppo        ━━━━━━━━━╸           19/40   0:52  left 0:57   loss 0.021 · reward 0.64 · KL 3.1
· evaluate
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from stages.progress import Step

SHOWN = (
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("reward", "reward"),
    ("score", "score"),
    ("kl", "KL"),
)
PLAIN_EVERY_S = 15.0


class Display(Protocol):
    """Who listens to a run."""

    def begin(self, stage: str, about: str) -> None:
        """A stage starts, or goes on."""

    def step(self, step: Step) -> None:
        """A step of the running stage is done."""

    def finish(self, note: str) -> None:
        """The running stage is done."""

    def skip(self, stage: str, note: str) -> None:
        """A stage needs no work."""

    def say(self, text: str) -> None:
        """A line for the person, not about a step."""


@contextmanager
def display(stages: Sequence[str]) -> Iterator[Display]:
    """A display of these stages, in order, for as long as the context lasts."""
    console = Console(stderr=True, soft_wrap=False)
    if not console.is_terminal:
        yield PlainDisplay()
        return
    with rows(console) as bars:
        yield LiveDisplay(bars, stages)


def rows(console: Console) -> Progress:
    """The table of the live display, without rows yet."""
    return Progress(
        TextColumn("{task.fields[mark]} {task.description}"),
        BarColumn(bar_width=18),
        TextColumn("{task.fields[count]}", justify="right"),
        TextColumn("{task.fields[clock]}"),
        TextColumn("{task.fields[numbers]}"),
        console=console,
        refresh_per_second=4,
    )


class Clock:
    """Time since the stage began, and time left by the pace since its first word.

    The first word comes after the libraries are loaded, and a resumed stage does not begin with
    step 1: neither counts towards the pace.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.first: tuple[float, int] | None = None

    def read(self, step: Step | None = None) -> tuple[float, float | None]:
        """Seconds used and seconds left; None while the pace is unknown."""
        now = time.monotonic()
        used = now - self.began
        if step is None or step.total == 0:
            return used, None
        if self.first is None or step.done <= self.first[1]:
            self.first = (now, step.done)
            return used, None
        begun, done = self.first
        return used, (now - begun) / (step.done - done) * (step.total - step.done)


class LiveDisplay:
    """A row a stage, redrawn in place."""

    def __init__(self, bars: Progress, stages: Sequence[str]) -> None:
        self.bars = bars
        self.rows = {name: self._row(name) for name in stages}
        self.running: TaskID | None = None
        self.clock = Clock()
        self.numbers: dict[str, float] = {}

    def begin(self, stage: str, about: str) -> None:
        """Mark the stage as running."""
        self.running, self.clock, self.numbers = self.rows[stage], Clock(), {}
        self._set(mark="[bold cyan]▸[/]", numbers=escape(about), clock="", total=None)

    def step(self, step: Step) -> None:
        """Move the bar; show time left and the numbers a person follows."""
        self.numbers.update(step.metrics)
        used, left = self.clock.read(step)
        clock = f"{duration(used)}" + (f" left {duration(left)}" if left is not None else "")
        count = f"{step.done}/{step.total}" if step.total else ""
        said = escape(numbers_line(self.numbers)) or None
        self._set(count=count, clock=clock, numbers=said, done=step.done, total=step.total or 1)

    def finish(self, note: str) -> None:
        """Mark the stage as done."""
        used, _ = self.clock.read()
        told = (numbers_line(self.numbers), trained_line(self.numbers), note)
        said = escape(" · ".join(text for text in told if text))
        self._set(mark="[green]✓[/]", clock=duration(used), numbers=said, whole=True)
        self.running = None

    def skip(self, stage: str, note: str) -> None:
        """Mark the stage as up to date."""
        self.running = self.rows[stage]
        self._set(mark="[green]✓[/]", numbers=f"[dim]{escape(note)}[/]", whole=True)
        self.running = None

    def say(self, text: str) -> None:
        """Print above the display."""
        self.bars.console.print(escape(text))

    def _row(self, name: str) -> TaskID:
        fields = {"mark": "[dim]·[/]", "count": "", "clock": "", "numbers": ""}
        return self.bars.add_task(f"{name:<9}", total=1, start=False, **fields)  # type: ignore[arg-type]

    def _set(self, *, mark: str | None = None, count: str | None = None, clock: str | None = None,
             numbers: str | None = None, done: int = 0, total: int | None = 1, whole: bool = False,
             ) -> None:  # fmt: skip
        if self.running is None:
            return
        fields = {"mark": mark, "count": count, "clock": clock, "numbers": numbers}
        said = {name: text for name, text in fields.items() if text is not None}
        if total is None:
            self.bars.start_task(self.running)
        place = (1, 1) if whole else (done, total)
        self.bars.update(self.running, completed=place[0], total=place[1], **said)  # type: ignore[arg-type]


class PlainDisplay:
    """A line when a stage begins, every quarter of a minute, and when it ends."""

    def __init__(self) -> None:
        self.stage = ""
        self.clock = Clock()
        self.numbers: dict[str, float] = {}
        self.spoke = 0.0

    def begin(self, stage: str, about: str) -> None:
        """Say that the stage starts."""
        self.stage, self.clock, self.numbers, self.spoke = stage, Clock(), {}, time.monotonic()
        if about:
            self.say(f"{stage}: {about}")

    def step(self, step: Step) -> None:
        """Say a line, now and then."""
        self.numbers.update(step.metrics)
        used, left = self.clock.read(step)
        if time.monotonic() - self.spoke < PLAIN_EVERY_S or not step.total:
            return
        self.spoke = time.monotonic()
        rest = f", {duration(left)} left" if left is not None else ""
        said = numbers_line(self.numbers)
        place = f"{self.stage}: {step.done}/{step.total}, {duration(used)}{rest}"
        self.say(f"{place}, {said}" if said else place)

    def finish(self, note: str) -> None:
        """Say that the stage is done."""
        used, _ = self.clock.read()
        told = (numbers_line(self.numbers), trained_line(self.numbers), note)
        said = ", ".join(text for text in (f"done in {duration(used)}", *told) if text)
        self.say(f"{self.stage}: {said}")

    def skip(self, stage: str, note: str) -> None:
        """Say that the stage needs no work."""
        self.say(f"{stage}: {note}")

    def say(self, text: str) -> None:
        """Print a line on stderr."""
        print(text, file=sys.stderr, flush=True)


def numbers_line(metrics: Mapping[str, float]) -> str:
    """Loss, reward and KL out of a step's metrics, by the last part of their names."""
    parts = []
    for word, shown in SHOWN:
        for name, value in metrics.items():
            last = name.rsplit("/", 1)[-1]
            if last == word or last.startswith(f"{word}_") or last.endswith(f"_{word}"):
                parts.append(f"{shown} {value:.3g}")
                break
    return " · ".join(parts)


def trained_line(metrics: Mapping[str, float]) -> str:
    """How many numbers a stage trained, and what share of its base that is, if it said so."""
    share = {name.rsplit("/", 1)[-1]: value for name, value in metrics.items()}
    if "trained_share" not in share:
        return ""
    return f"{share['trained_parameters']:,.0f} trained ({share['trained_share']:.3g} of the base)"


def duration(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
