"""What the verbs of `pipeline/cli/evaluation.py` do; heavy imports are inside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pipeline.cli.evaluation_settings import inputs_of
from pipeline.evaluation.request import Request, columns_of, evaluation_config, scorer_settings
from reward_models.records import Ranking, RankingTask, read_rankings, read_tasks

if TYPE_CHECKING:
    from pipeline.evaluation.samples.results import Results
    from stages.progress import Report

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scoring:
    """How samples are to be scored and compared, as the command line says it."""

    columns: str = ""
    against: Sequence[str] = ()
    missing: Literal["error", "intersect"] = "error"
    scorers: Sequence[str] = ()
    sets: Sequence[str] = ()
    seed: int = 0


def evaluate(request: Request, out: Path) -> Path:
    """Policies judged: out/samples.jsonl and out/results.json."""
    from pipeline.evaluation.evaluate import evaluate

    inputs = inputs_of(request, out)
    _print_summary(_shown("evaluate", lambda said: evaluate(replace(inputs, report=said), out)))
    return out


def generate(request: Request, out: Path) -> Path:
    """What policies say: out/samples.jsonl."""
    from pipeline.evaluation.evaluate import SAMPLES, generate

    inputs = inputs_of(request, out)
    _shown("generate", lambda said: generate(replace(inputs, report=said), out))
    return out / SAMPLES


def score(samples: Sequence[Path], scoring: Scoring, out: Path) -> Path:
    """Samples judged and compared: out/samples.jsonl and out/results.json."""
    from pipeline.evaluation.external.score import score_file

    further = scorer_settings(scoring.scorers)
    if scoring.missing == "intersect":
        further["missing"] = "intersection"
    config = evaluation_config(None, scoring.sets, further)
    columns = columns_of(scoring.columns)

    def work(said: "Report") -> "Results":
        return score_file(
            samples, columns, out=out, against=scoring.against, config=config, seed=scoring.seed,
            report=said,
        )  # fmt: skip

    _print_summary(_shown("score", work))
    return out


def score_people(place: str, scoring: Scoring, out: Path) -> Path:
    """Win rates, ratings and flags by annotators: out/samples.jsonl and out/results.json."""
    from pipeline.evaluation.external.human_labels import score_labels

    config = evaluation_config(None, scoring.sets, {})
    tasks, rankings = _labels(place)
    results = score_labels(
        tasks, rankings, out=out, against=scoring.against, config=config, seed=scoring.seed
    )
    _print_summary(results)
    return out


def report(place: Path, out: Path | None) -> Path:
    """report.html of a folder with results, and every table beside it."""
    from pipeline.report.build import write_report

    page = place / "report.html" if out is None else out
    return write_report(place, page if page.suffix == ".html" else page / "report.html")


def _labels(place: str) -> tuple[list[RankingTask], list[Ranking]]:
    """Of a folder with tasks.jsonl and rankings.jsonl, or of a store."""
    from contextlib import closing

    from pipeline.labeling.exchange import store_at

    for folder in (Path(place), Path(place) / "label"):
        if (folder / "tasks.jsonl").is_file() and (folder / "rankings.jsonl").is_file():
            tasks = read_tasks(folder / "tasks.jsonl")
            return tasks, read_rankings(folder / "rankings.jsonl", tasks)
    with closing(store_at(place)) as store:
        return store.tasks(), store.rankings()


def _shown(stage: str, work: Callable[["Report"], T]) -> T:
    """Do the work under a progress display on stderr."""
    from pipeline.runs.display import display

    with display([stage]) as shown:
        shown.begin(stage, "")
        found = work(shown.step)
        shown.finish("")
    return found


def _print_summary(results: "Results") -> None:
    from rich.console import Console

    from pipeline.report.terminal import summary_table

    console = Console(stderr=True)
    console.print()
    console.print(summary_table(results))
    for note in results.notes:
        console.print(f"Note: {note}.")
