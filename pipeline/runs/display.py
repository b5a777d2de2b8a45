"""Progress on stderr: a live table, or lines where it is no terminal.

✓ sft        ━━━━━━━━━━━━━━━━━━━━ 96/96   0:41
▸ ppo        ━━━━━━━━━╸           19/40   0:52, 0:57 left   reward 0.64 · KL 3.1 · loss 0.021
· evaluate
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from stages.progress import Report, Step

ROUNDING = 1e-6  # smaller numbers are rounding errors, such as PPO's loss at ratio 1
HEADLINES = {"loss": "loss", "accuracy": "accuracy", "reward": "reward", "score": "score"}
HEADLINES["kl"] = "KL"
WIDE = 100  # columns from which on a bar is long
PLAIN_EVERY_S = 15.0
PLAIN_AFTER_S = 2.0  # work without a count of its own that takes longer gets a line
POLL_S = 0.5


@contextmanager
def display(stages: Sequence[str]) -> Iterator["Display"]:
    """Yield a display of these stages, in order."""
    console = Console(stderr=True, soft_wrap=False)
    if not console.is_terminal:
        plain = PlainDisplay()
        try:
            yield plain
        finally:
            plain.finished.set()
        return
    with progress_table(console) as table:
        yield LiveDisplay(table, stages)


@contextmanager
def reporting(stage: str, about: str = "") -> Iterator[Report]:
    """Show work that is no stage of a run; yield what its steps are reported to."""
    with display([stage]) as progress:
        progress.begin(stage, about)
        yield progress.step
        progress.finish("")


def headlines(metrics: Mapping[str, float]) -> list[str]:
    """Return loss, reward, KL and the like out of metrics, by the last part of their names."""
    parts = []
    for word, title in HEADLINES.items():
        for name, value in metrics.items():
            last = name.rsplit("/", 1)[-1]
            if last == word or last.startswith(f"{word}_") or last.endswith(f"_{word}"):
                parts.append(f"{title} {0.0 if abs(value) < ROUNDING else value:.3g}")
                break
    is_ppo = any(part.startswith("reward") for part in parts)  # its loss is of little interest
    return sorted(parts, key=lambda part: is_ppo and part.startswith("loss"))


def trained_line(metrics: Mapping[str, float]) -> str:
    """Return the number of parameters a stage trained and their share of the model, if known."""
    values = {name.rsplit("/", 1)[-1]: value for name, value in metrics.items()}
    if "trained_share" not in values:
        return ""
    percent = 100 * values["trained_share"]
    return f"trained {values['trained_parameters']:,.0f} parameters ({percent:.3g} % of the model)"


def duration(seconds: float) -> str:
    """Return seconds as m:ss, or h:mm:ss."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class StageProgress:
    """The progress of a stage by its steps so far. The count never runs backwards.

    The time left goes by the pace since the first counted step: it comes after the libraries are
    loaded, and a resumed stage does not start with step 1.
    """

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.first: tuple[float, int] | None = None  # time and count of the first step
        self.done, self.total, self.doing = 0, 0, ""
        self.left_s: float | None = None
        self.metrics: dict[str, float] = {}

    def add(self, step: Step) -> None:
        """Add a step. An iteration that is repeated after a rollback does not count down."""
        self.metrics.update(step.metrics)
        self.doing = step.doing
        if not step.total:
            return
        self.total = max(self.total, step.total)
        self.done = max(self.done, min(step.done, self.total))
        now = time.monotonic()
        if self.first is None or self.done <= self.first[1]:
            self.first = (now, self.done)
            self.left_s = None
        else:
            start, done = self.first
            self.left_s = (now - start) / (self.done - done) * (self.total - self.done)

    def count(self) -> str:
        """Return the steps done of all."""
        return f"{self.done}/{self.total}" if self.total else ""

    def used(self) -> str:
        """Return the time used."""
        return duration(time.monotonic() - self.start)

    def clock(self) -> str:
        """Return the time used, and the time left as of the last step."""
        return self.used() + ("" if self.left_s is None else f", {duration(self.left_s)} left")


class ClockColumn(ProgressColumn):
    """The time of a row, which continues between steps."""

    def render(self, task: Task) -> Text:
        """Return the time now."""
        return Text(task.fields["clock"]())


class PartsColumn(ProgressColumn):
    """The words of a stage's row."""

    def render(self, task: Task) -> "Parts":
        """Return the row's parts."""
        return Parts(task.fields["parts"], task.fields["style"])


class Parts:
    """As many parts of a line as fit: none is cut or wrapped."""

    def __init__(self, parts: Sequence[str], style: str = "") -> None:
        self.parts, self.style = [part for part in parts if part], style

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, min(len(self._within(10**6)), options.max_width))

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield Text(self._within(options.max_width), style=self.style, no_wrap=True)

    def _within(self, width: int) -> str:
        line = ""
        for part in self.parts:
            longer = f"{line} · {part}" if line else part
            if len(longer) > width:
                break
            line = longer
        return line


def progress_table(console: Console) -> Progress:
    """Return the table of the live display, without rows yet."""
    return Progress(
        TextColumn("{task.fields[mark]} {task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=18 if console.width >= WIDE else 10),
        TextColumn("{task.fields[count]}", justify="right", table_column=Column(no_wrap=True)),
        ClockColumn(table_column=Column(no_wrap=True)),
        PartsColumn(table_column=Column()),
        console=console,
        refresh_per_second=4,
    )


class LiveDisplay:
    """A row a stage, redrawn in place."""

    def __init__(self, table: Progress, stages: Sequence[str]) -> None:
        self.table = table
        row: dict[str, Any] = {"count": "", "clock": str, "parts": (), "style": ""}
        row["mark"] = "[dim]·[/]"
        self.rows = {
            name: table.add_task(f"{name:<9}", total=1, start=False, **row) for name in stages
        }
        self.row = TaskID(0)
        self.progress = StageProgress()

    def begin(self, stage: str, about: str) -> None:
        """Mark the stage as running."""
        self.row, self.progress = self.rows[stage], StageProgress()
        self.table.start_task(self.row)
        clock, parts = self.progress.clock, about.split(", ")
        self.table.update(self.row, total=None, mark="[bold cyan]▸[/]", clock=clock, parts=parts)

    def step(self, step: Step) -> None:
        """Move the bar; show time left and the metrics that a person follows."""
        progress = self.progress
        progress.add(step)
        parts = [progress.doing, *headlines(progress.metrics)]
        done, total = progress.done, progress.total or None
        self.table.update(
            self.row, completed=done, total=total, count=progress.count(), parts=parts
        )

    def finish(self, note: str) -> None:
        """Mark the stage as done."""
        used, metrics = self.progress.used(), self.progress.metrics
        parts = [*headlines(metrics), *note.split(", "), trained_line(metrics)]
        self._complete(clock=lambda: used, parts=parts)

    def skip(self, stage: str, note: str) -> None:
        """Mark the stage as up to date."""
        self.row = self.rows[stage]
        self._complete(parts=[note], style="dim")

    def print(self, text: str) -> None:
        """Print above the table."""
        self.table.console.print(text, markup=False, soft_wrap=True)

    def _complete(self, **fields: Any) -> None:
        self.table.update(self.row, completed=1, total=1, mark="[green]✓[/]", **fields)


class PlainDisplay:
    """A line when a stage starts, when its work changes, now and then, and at its end."""

    def __init__(self) -> None:
        self.stage = ""
        self.progress = StageProgress()
        self.printed = self.changed = 0.0  # times of the last line, and of the last change of work
        self.printed_work = ""
        self.finished = Event()

    def begin(self, stage: str, about: str) -> None:
        """Print that the stage starts; from now on it is never silent for long."""
        self.stage, self.progress, self.printed = stage, StageProgress(), time.monotonic()
        self.printed_work, self.finished = "", Event()
        if about:
            self.print(f"{stage}: {about}")
        Thread(target=self._watch, args=(self.finished,), daemon=True).start()

    def step(self, step: Step) -> None:
        """Add a step; a line follows when it is time."""
        if _work(step.doing) != _work(self.progress.doing):
            self.changed = time.monotonic()
        self.progress.add(step)

    def finish(self, note: str) -> None:
        """Print that the stage is done."""
        self.finished.set()
        metrics = self.progress.metrics
        done = f"done in {self.progress.used()}"
        self._print(done, *headlines(metrics), trained_line(metrics), note)

    def skip(self, stage: str, note: str) -> None:
        """Print that the stage needs no work."""
        self.print(f"{stage}: {note}")

    def print(self, text: str) -> None:
        """Print a line on stderr."""
        print(text, file=sys.stderr, flush=True)

    def _print(self, *parts: str) -> None:
        self.print(f"{self.stage}: {', '.join(part for part in parts if part)}")

    def _watch(self, finished: Event) -> None:
        while not finished.wait(POLL_S):
            self._print_if_due(time.monotonic())

    def _print_if_due(self, now: float) -> None:
        progress, work = self.progress, _work(self.progress.doing)
        is_new = work not in ("", self.printed_work) and now - self.changed >= PLAIN_AFTER_S
        if is_new or now - self.printed >= PLAIN_EVERY_S:
            self.printed_work, self.printed = work, now
            metrics = headlines(progress.metrics)
            self._print(progress.count(), progress.clock(), progress.doing, *metrics)


def _work(doing: str) -> str:
    """Return the work without its count, which follows a comma."""
    return doing.partition(",")[0]


Display = LiveDisplay | PlainDisplay
