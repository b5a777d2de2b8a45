"""Import and export of a store, its backup, and the agreement of its annotators."""

from collections.abc import Callable
from contextlib import closing
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


def store_at(where: str) -> Store:
    """Open the store of a run's folder, of a path, or of a URL; ValueError where there is none."""
    path = Path(where)
    if "://" not in where and path.is_dir():
        stores = [file for file in (path / STORE, path / "label" / STORE) if file.is_file()]
        if not stores:
            raise ValueError(f"{where}: no {STORE} in it; expected a run with rankings, or a store")
        where = str(stores[0])
    elif "://" not in where and not path.is_file():
        raise ValueError(f"{where}: no such file; expected a store, its URL, or a run's folder")
    return Store(where)


def export(where: str, out: Path, form: Format) -> Path:
    """Write the contents of a store to the folder `out`, in this format."""
    with closing(store_at(where)) as store:
        write_export(store, out, form)
    return out


def import_labels(
    path: Path,
    where: str,
    form: Form,
    *,
    overlap: int = 1,
    priority: int | None = None,
    gold: Path | None = None,
    log: Callable[[str], None],
) -> None:
    """Add tasks and rankings to a store, which is made if it is new; what is there is left alone.

    `gold` is a file of right rankings; their tasks become gold tasks. A `priority` holds for tasks
    that are there already as well.
    """
    tasks, rankings = _read(path, form)
    right = [] if gold is None else read_rankings(gold, tasks)
    known: dict[str, dict[str, int]] = {}
    for one in right:
        if one.task in known:
            raise ValueError(f"{gold}: task '{one.task}' has two right rankings, expected one")
        known[one.task] = dict(one.ranks)
    with closing(Store(where)) as store:
        new = store.add_tasks(tasks, overlap=overlap, priority=priority or 0, gold=known)
        ids = [task.id for task in tasks]
        moved = 0 if priority is None else store.set_priority(ids, priority)
        added = store.submit_all(rankings)
    log(f"{new} of {len(tasks)} tasks and {added} of {len(rankings)} rankings are new")
    if moved:
        log(f"{moved} tasks that were there have priority {priority} now")


def _read(path: Path, form: Form) -> tuple[list[RankingTask], list[Ranking]]:
    """Read tasks and rankings of a file; two public ones are read as they were published."""
    match form:
        case "squality":
            from stages.data.preferences import load_squality

            return load_squality(path)
        case "qa-feedback":
            from stages.data.preferences import load_qa_feedback

            questions = load_qa_feedback(path)
            rankings = [question.ranking for question in questions if question.ranking]
            return [question.task for question in questions], rankings
        case _:
            return read_labels(path, form)


def backup(where: str, path: Path) -> Path:
    """Copy a store while it is in use."""
    with closing(store_at(where)) as store:
        store.database.backup(path)
    return path


def tasks_and_rankings(where: str) -> tuple[list[RankingTask], list[Ranking]]:
    """Return those of a folder with tasks.jsonl and rankings.jsonl, or of a store."""
    for folder in (Path(where), Path(where) / "label"):
        if (folder / "tasks.jsonl").is_file() and (folder / "rankings.jsonl").is_file():
            tasks = read_tasks(folder / "tasks.jsonl")
            return tasks, read_rankings(folder / "rankings.jsonl", tasks)
    with closing(store_at(where)) as store:
        return store.tasks(), store.rankings()


def agreement_lines(where: str) -> list[str]:
    """Return the agreement of annotators, line by line, for a file of rankings or a store."""
    if Path(where).is_file() and ending(Path(where)) in ENDINGS:
        every, tasks, gold, practice = read_records(Path(where), Ranking), [], {}, []
        rankings = [ranking for ranking in every if ranking.kind != "judge"]
        judgements = [ranking for ranking in every if ranking.kind == "judge"]
    else:
        with closing(store_at(where)) as store:
            tasks, rankings, gold = store.tasks(), store.rankings(), store.gold()
            judgements, practice = store.rankings(use="judges"), store.practice()
    if not rankings and not judgements:
        raise ValueError(f"{where}: no ranking in it")
    rng = np.random.default_rng(0)
    return _lines(
        report(tasks, rankings, gold=gold, rng=rng, judgements=judgements, practice=practice)
    )


def _lines(numbers: dict[str, Any]) -> list[str]:
    tied, ties = numbers["ties"], ("both", "one")
    lines = [
        f"{numbers['num_rankings']} rankings, {numbers['num_pairs']} untied pairs, by "
        + (
            ", ".join(f"{kind} annotators ({n})" for kind, n in numbers["kinds"].items())
            or "nobody"
        ),
        f"{'agreement over pairs':<34}{_rate(numbers['agreement'])}",
        f"{'Kendall tau-b, mean':<34}{_number(numbers['tau_b'])}",
        f"{'Krippendorff alpha of ranks':<34}{_number(numbers['alpha_ranks'])}  (ordinal)",
        f"{'Krippendorff alpha of ratings':<34}{_number(numbers['alpha_ratings'])}  (ordinal)",
        f"{'pairs tied by both, by one':<34}" + ", ".join(_share(tied[name]) for name in ties),
    ]
    for row in numbers["flags"]:
        name = f"alpha of {row['flag']}"
        lines.append(f"{name:<34}{_number(row['alpha'])}  ({row['yes']} yes, {row['no']} no)")
    for row in numbers["annotators"]:
        warnings = "; ".join(row["warnings"])
        lines.append(
            f"{row['name'][:30]:<34}{_rate(row['agreement'])}, "
            f"{row['num_rankings']} rankings{', ' + warnings if warnings else ''}"
        )
        lines += _learning_lines(row)
    for row in numbers["judges"]:
        lines += _judge_lines(row)
    return lines


def _learning_lines(row: dict[str, Any]) -> list[str]:
    """Return a person's agreement with practice tasks and with gold over time, if there is any."""
    rates = [("practice", row["practice"])]
    rates += [(f"gold {one['from']} to {one['to']}", one["gold"]) for one in row["gold_over_time"]]
    return [f"  {name:<32}{_rate(rate)}" for name, rate in rates if rate["value"] is not None]


def _judge_lines(row: dict[str, Any]) -> list[str]:
    rows = [
        (f"with {one['name']}", f"{_rate(one['agreement'])}, {_statistics(one)}")
        for one in row["people"]
    ]
    if len(rows) != 1:
        rows.insert(0, ("with people", f"{_rate(row['agreement'])}, {_statistics(row)}"))
    rows += [
        ("verdicts that follow the position", _rate(row["followed_position"])),
        ("won by the first response", _rate(row["first_wins"])),
        ("won by the longer response", _rate(row["longer_wins"])),
        ("  the same for people", _rate(row["longer_wins_for_people"])),
    ]
    head = f"{row['name']}, a model: {row['num_rankings']} rankings, none counted as a person's"
    warnings = [f"  {warning}" for warning in row["warnings"]]
    return [head, *(f"  {name:<34}{text}" for name, text in rows), *warnings]


def _statistics(row: dict[str, Any]) -> str:
    return f"kappa {_number(row['kappa'])}, tau-b {_number(row['tau_b'])}"


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
