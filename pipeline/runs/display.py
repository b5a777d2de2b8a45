"""What a person sees while stages run: a live display on stderr, or lines where it is no terminal.

✓ sft        ━━━━━━━━━━━━━━━━━━━━ 96/96   0:41
▸ ppo        ━━━━━━━━━╸           19/40   0:52  left 0:57   loss 0.021 · reward 0.64 · KL 3.1
· evaluate
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from stages.progress import Step

_ROUNDING = 1e-6  # smaller numbers are rounding errors, such as PPO's loss at ratio 1
SHOWN = (
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("reward", "reward"),
    ("score", "score"),
    ("kl", "KL"),
)


class ClockColumn(ProgressColumn):
    """The time of a row, which goes on between steps."""

    def render(self, task: Task) -> Text:
        """Return the row as it is now."""
        return Text(task.fields["clock"]())


class PartsColumn(ProgressColumn):
    """The words of a stage's row."""

    def render(self, task: Task) -> "Parts":
        """The row's parts."""
        return Parts(task.fields["parts"], task.fields["style"])


class Parts:
    """Parts of a line, as many of them as there is room for: none is cut or wrapped."""

    def __init__(self, parts: Sequence[str], style: str = "") -> None:
        self.parts, self.style = [part for part in parts if part], style

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        """Anything down to nothing."""
        return Measurement(0, min(len(self.within(10**6)), options.max_width))

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The parts that fit."""
        yield Text(self.within(options.max_width), style=self.style, no_wrap=True)

    def within(self, width: int) -> str:
        """The first parts that fit into so many characters."""
        words = ""
        for part in self.parts:
            longer = f"{words} · {part}" if words else part
            if len(longer) > width:
                break
            words = longer
        return words


def numbers_line(metrics: Mapping[str, float]) -> str:
    """Loss, reward and KL out of a step's metrics, by the last part of their names."""
    parts = []
    for word, shown in SHOWN:
        for name, value in metrics.items():
            last = name.rsplit("/", 1)[-1]
            if last == word or last.startswith(f"{word}_") or last.endswith(f"_{word}"):
                rounded = 0.0 if abs(value) < _ROUNDING else value
                parts.append(f"{shown} {rounded:.3g}")
                break
    return " · ".join(parts)


def trained_line(metrics: Mapping[str, float]) -> str:
    """The number of parameters a stage trained and their share of the model, if it said so."""
    share = {name.rsplit("/", 1)[-1]: value for name, value in metrics.items()}
    if "trained_share" not in share:
        return ""
    percent = 100 * share["trained_share"]
    count = f"{share['trained_parameters']:,.0f}"
    return f"trained {count} parameters ({percent:.3g} % of the model)"


def duration(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


PLAIN_EVERY_S = 15.0
PLAIN_AFTER_S = 2.0  # work without a count of its own that takes longer gets a line
LOOK_EVERY_S = 0.5

Field = str | Sequence[str] | Callable[[], str]  # of a row
_WIDE = 100  # columns from which on a bar is long


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
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn("{task.fields[mark]} {task.description}", table_column=whole),
        BarColumn(bar_width=18 if console.width >= _WIDE else 10),
        TextColumn("{task.fields[count]}", justify="right", table_column=whole.copy()),
        ClockColumn(table_column=whole.copy()),
        PartsColumn(table_column=Column()),
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


class State:
    """The progress of a stage by its steps so far. The count never runs backwards."""

    def __init__(self) -> None:
        self.clock, self.done, self.total, self.doing = Clock(), 0, 0, ""
        self.left_s: float | None = None
        self.metrics: dict[str, float] = {}

    def take(self, step: Step) -> None:
        """Add a step. An iteration that is done again after a rollback does not count down."""
        self.metrics.update(step.metrics)
        self.doing = step.doing
        if step.total:
            self.total = max(self.total, step.total)
            self.done = max(self.done, min(step.done, self.total))
            _, self.left_s = self.clock.read(Step(self.done, self.total))

    def clock_text(self) -> str:
        """Time used, and time left as of the last step."""
        left = "" if self.left_s is None else f", {duration(self.left_s)} left"
        return f"{self.used()}{left}"

    def used(self) -> str:
        """Time used."""
        return duration(self.clock.read()[0])

    def numbers(self) -> list[str]:
        """The numbers that a person follows, as parts of a line."""
        parts = list(filter(None, numbers_line(self.metrics).split(" · ")))
        is_ppo = any(part.startswith("reward") for part in parts)  # its loss says little
        return sorted(parts, key=lambda part: is_ppo and part.startswith("loss"))


class LiveDisplay:
    """A row a stage, redrawn in place."""

    def __init__(self, bars: Progress, stages: Sequence[str]) -> None:
        self.bars = bars
        self.rows = {name: self._row(name) for name in stages}
        self.running: TaskID | None = None
        self.state = State()

    def begin(self, stage: str, about: str) -> None:
        """Mark the stage as running."""
        self.running, self.state = self.rows[stage], State()
        self.bars.start_task(self.running)
        state, parts = self.state, about.split(", ")
        self._set(mark="[bold cyan]▸[/]", clock=state.clock_text, parts=parts, done=0, total=None)

    def step(self, step: Step) -> None:
        """Move the bar; show time left and the numbers a person follows."""
        self.state.take(step)
        parts = [self.state.doing, *self.state.numbers()]
        done, total = self.state.done, self.state.total
        self._set(count=f"{done}/{total}" if total else "", parts=parts, done=done, total=total)

    def finish(self, note: str) -> None:
        """Mark the stage as done."""
        used = self.state.used()
        trained = trained_line(self.state.metrics)
        parts = [*self.state.numbers(), *note.split(", "), trained]
        self._set(mark="[green]✓[/]", clock=lambda: used, parts=parts, done=1, total=1)
        self.running = None

    def skip(self, stage: str, note: str) -> None:
        """Mark the stage as up to date."""
        self.running = self.rows[stage]
        self._set(mark="[green]✓[/]", parts=[note], style="dim", done=1, total=1)
        self.running = None

    def say(self, text: str) -> None:
        """Print above the display."""
        self.bars.console.print(text, markup=False, soft_wrap=True)

    def _row(self, name: str) -> TaskID:
        fields = {"mark": "[dim]·[/]", "count": "", "clock": str, "parts": (), "style": ""}
        return self.bars.add_task(f"{name:<9}", total=1, start=False, **fields)  # type: ignore[arg-type]

    def _set(self, *, done: int, total: int | None, **fields: Field) -> None:
        if self.running is not None:
            self.bars.update(self.running, completed=done, total=total or None, **fields)  # type: ignore[arg-type]


class PlainDisplay:
    """A line when a stage begins, when it does something else, now and then, and at its end."""

    def __init__(self) -> None:
        self.stage = ""
        self.state = State()
        self.spoke = self.changed = 0.0  # when a line was printed, and when other work began
        self.told = ""  # the last work that a line named
        self.ends = Event()

    def begin(self, stage: str, about: str) -> None:
        """Say that the stage starts; from now on it is never silent for long."""
        self.stage, self.state, self.spoke = stage, State(), time.monotonic()
        self.told, self.ends = "", Event()
        if about:
            self.say(f"{stage}: {about}")
        Thread(target=self._watch, args=(self.ends,), daemon=True).start()

    def step(self, step: Step) -> None:
        """Take note of it."""
        if _kind(step.doing) != _kind(self.state.doing):
            self.changed = time.monotonic()
        self.state.take(step)

    def finish(self, note: str) -> None:
        """Say that the stage is done."""
        self.ends.set()
        trained = trained_line(self.state.metrics)
        self._say_parts(f"done in {self.state.used()}", *self.state.numbers(), trained, note)

    def skip(self, stage: str, note: str) -> None:
        """Say that the stage needs no work."""
        self.say(f"{stage}: {note}")

    def say(self, text: str) -> None:
        """Print a line on stderr."""
        print(text, file=sys.stderr, flush=True)

    def _say_parts(self, *parts: str) -> None:
        self.say(f"{self.stage}: {', '.join(part for part in parts if part)}")

    def _watch(self, ends: Event) -> None:
        while not ends.wait(LOOK_EVERY_S):
            self._look(time.monotonic())

    def _look(self, now: float) -> None:
        doing = self.state.doing
        is_new = _kind(doing) not in ("", self.told) and now - self.changed >= PLAIN_AFTER_S
        if is_new or now - self.spoke >= PLAIN_EVERY_S:
            self.told, self.spoke = _kind(doing), now
            count = f"{self.state.done}/{self.state.total}" if self.state.total else ""
            self._say_parts(count, self.state.clock_text(), doing, *self.state.numbers())


def _kind(doing: str) -> str:
    """Work without its count, which follows a comma."""
    return doing.partition(",")[0]
