"""The words of a progress line: numbers, times, and as many of them as there is room for."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import ProgressColumn, Task
from rich.text import Text

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
