"""Labels into a store, out of it, into safety, and what they say of how far people agree."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from labeling_ui.formats.files import Format, Source, read_labels, write_export
from labeling_ui.reports.quality import report
from labeling_ui.store.store import Store
from pipeline.labeling.settings import STORE
from reward_models.intervals import Rate
from reward_models.records import Ranking, RankingTask, read_rankings, read_records, read_tasks
from reward_models.row_files import ENDINGS, ending

Form = Source | Literal["squality", "qa-feedback"]


def store_at(place: str) -> Store:
    """The store of a run's folder, of a path, or of a URL; ValueError where there is none."""
    folder = Path(place)
    if "://" not in place and folder.is_dir():
        here = [path for path in (folder / STORE, folder / "label" / STORE) if path.is_file()]
        if not here:
            raise ValueError(f"{place}: no {STORE} in it; expected a run with rankings, or a store")
        place = str(here[0])
    elif "://" not in place and not folder.is_file():
        raise ValueError(f"{place}: no such file; expected a store, its URL, or a run's folder")
    return Store(place)


def export(place: str, out: Path, form: Format) -> Path:
    """Write what a store holds to the folder `out`, in the form asked for."""
    with closing(store_at(place)) as store:
        write_export(store, out, form)
    return out


@dataclass(frozen=True, slots=True)
class Places:
    """How many people each imported task is for, which come first, and a file of right rankings."""

    overlap: int = 1
    priority: int = 0
    gold: Path | None = None


def import_labels(
    found: Path, place: str, form: Form, places: Places, say: Callable[[str], None]
) -> None:
    """Add tasks and rankings to a store, which is made if it is new; what is there is left alone.

    Tasks whose right ranking is known become gold tasks.
    """
    tasks, rankings = _read(found, form)
    gold = places.gold
    right = [] if gold is None else read_rankings(gold, tasks)
    known: dict[str, dict[str, int]] = {}
    for one in right:
        if one.task in known:
            raise ValueError(f"{gold}: task '{one.task}' has two right rankings, expected one")
        known[one.task] = dict(one.ranks)
    with closing(Store(place)) as store:
        new = store.add_tasks(tasks, overlap=places.overlap, priority=places.priority, gold=known)
        added = store.submit_all(rankings)
    say(f"{new} of {len(tasks)} tasks and {added} of {len(rankings)} rankings are new")


def _read(found: Path, form: Form) -> tuple[list[RankingTask], list[Ranking]]:
    """Tasks and rankings of a file; two public ones are read as they were published."""
    match form:
        case "squality":
            from stages.data.public_comparisons import load_squality

            return load_squality(found)
        case "qa-feedback":
            from stages.data.public_comparisons import load_qa_feedback

            questions = load_qa_feedback(found)
            rankings = [question.ranking for question in questions if question.ranking]
            return [question.task for question in questions], rankings
        case _:
            return read_labels(found, form)


def backup(place: str, path: Path) -> Path:
    """Copy a store while it is in use."""
    with closing(store_at(place)) as store:
        store.database.backup(path)
    return path


def tasks_and_rankings(place: str) -> tuple[list[RankingTask], list[Ranking]]:
    """Return those of a folder with tasks.jsonl and rankings.jsonl, or of a store."""
    for folder in (Path(place), Path(place) / "label"):
        if (folder / "tasks.jsonl").is_file() and (folder / "rankings.jsonl").is_file():
            tasks = read_tasks(folder / "tasks.jsonl")
            return tasks, read_rankings(folder / "rankings.jsonl", tasks)
    with closing(store_at(place)) as store:
        return store.tasks(), store.rankings()


def agreement_lines(place: str) -> list[str]:
    """How far annotators agree, line by line: of a file of rankings, or of a store."""
    tasks, rankings, gold = _labels(place)
    if not rankings:
        raise ValueError(f"{place}: no ranking in it")
    made = report(tasks, rankings, gold=gold, rng=np.random.default_rng(0))
    return list(_lines(made))


def _labels(place: str) -> tuple[list[RankingTask], list[Ranking], dict[str, dict[str, int]]]:
    if Path(place).is_file() and ending(Path(place)) in ENDINGS:
        return [], read_records(Path(place), Ranking), {}
    with closing(store_at(place)) as store:
        return store.tasks(), store.rankings(), store.gold()


def _lines(made: dict[str, Any]) -> list[str]:
    tied, ties = made["ties"], ("both", "one")
    lines = [
        f"{made['num_rankings']} rankings, {made['num_pairs']} untied pairs, by "
        + ", ".join(f"{kind} annotators ({n})" for kind, n in made["kinds"].items()),
        f"{'agreement over pairs':<34}{_rate(made['agreement'])}",
        f"{'Kendall tau-b, mean':<34}{_number(made['tau_b'])}",
        f"{'Krippendorff alpha of ranks':<34}{_number(made['alpha_ranks'])}  (ordinal)",
        f"{'Krippendorff alpha of ratings':<34}{_number(made['alpha_ratings'])}  (ordinal)",
        f"{'pairs tied by both, by one':<34}" + ", ".join(_share(tied[name]) for name in ties),
    ]
    for row in made["flags"]:
        name = f"alpha of {row['flag']}"
        lines.append(f"{name:<34}{_number(row['alpha'])}  ({row['yes']} yes, {row['no']} no)")
    for row in made["annotators"]:
        warnings = "; ".join(row["warnings"])
        lines.append(
            f"{row['name'][:30]:<34}{_rate(row['agreement'])}, "
            f"{row['num_rankings']} rankings{', ' + warnings if warnings else ''}"
        )
    return lines


def _rate(row: dict[str, Any]) -> str:
    rate = Rate(**row)
    if rate.value is None:
        return "-"
    interval = f"95 % interval {_share(rate.low)} to {_share(rate.high)}"
    return f"{_share(rate.value)} ({interval}, {rate.num_pairs} pairs, {rate.num_prompts} tasks)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
