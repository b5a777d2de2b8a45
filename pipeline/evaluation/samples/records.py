"""The completion record: a model's response to a prompt, and what scorers gave it.

    {"id", "suite", "model", "prompt_type", "prompt", "context"?, "completion", "k",
     "generation": {...}, "finish_reason", "scores": {scorer: {metric: value | null} | null},
     "score_meta": {scorer: {version, sha256, threshold}}}

A prompt with earlier turns is `messages` instead (see reward_models/conversations.py).
`id` names the prompt, so that the responses of all models to it share one id: they are paired.

`ScoredRows` are many of them as columns, from which tables are made. Texts are
left out unless a suite needs them, so that millions of rows fit in memory.

Dimension key:  S rows (samples of all prompts and models).
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reward_models.conversations import Turn
from reward_models.intervals import Floats
from reward_models.records import Record
from reward_models.row_files import (
    flag,
    mapping,
    number,
    optional_name,
    optional_text,
    required_name,
    required_text,
    whole_number,
)

WORLD = "world"  # the key of a prompt's extra fields that the quickstart's gold judge reads
FAILED = np.inf  # in a column of scores: the scorer failed; NaN: it does not apply
ALL = ""  # the metric of a scorer that failed on a row altogether
_NAMES = ("id", "model", "suite", "prompt_type", "category", "k")
_TEXT_FIELDS = ("completion", "answerable", "n_tokens", "ended", "reference")
Bools = NDArray[np.bool_]
Scores = Mapping[str, float | None] | None


@dataclass(frozen=True, slots=True)
class Completion(Record):
    """One completion. A scorer's entry is null where it failed and {} where it does not apply."""

    required = ("id", "model", "prompt", "completion")
    id: str
    model: str
    prompt: str
    completion: str
    suite: str = "samples"
    prompt_type: str = "none"
    k: int = 0
    context: str | None = None
    category: str | None = None
    answerable: bool | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    n_tokens: int | None = None
    prompt_extra: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Scores] = field(default_factory=dict)
    score_meta: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        for name in self.required:
            required_text(name, getattr(self, name), empty=True)

    @property
    def ended(self) -> bool:
        """True where the response ended by itself, not by the token limit."""
        return self.finish_reason != "length"


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("id", "model", "suite", "prompt_type"), required_name),
    **dict.fromkeys(("generation", "prompt_extra", "scores", "score_meta"), mapping),
    "context": optional_text,
    "category": optional_name,
    "finish_reason": optional_name,
    "answerable": flag,
    "k": whole_number,
    "n_tokens": lambda name, value: None if value is None else whole_number(name, value),
}


def completion_from(row: Mapping[str, Any]) -> Completion:
    """Return the completion of a row that anybody may have written; raise ValueError if it is none.

    The record itself checks little, because there are millions of them.
    """
    required = ("id", "model", "suite", "prompt_type")
    checked = {
        name: check(name, row[name])
        for name, check in _CHECKS.items()
        if name in row and (row[name] is not None or name not in required)
    }
    for scorer, scores in checked.get("scores", {}).items():
        for metric, value in mapping(f"scores of {scorer}", scores).items():
            number(f"{metric} of {scorer}", value)
    for scorer, about in checked.get("score_meta", {}).items():
        mapping(f"score_meta of {scorer}", about)
    return Completion.from_json({**row, **checked})


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Rows as a frame of fields and a frame of scores, whose columns are (scorer, metric)."""

    fields: pd.DataFrame
    scores: pd.DataFrame
    meta: Mapping[str, Mapping[str, Any]]  # version, hash and threshold of each scorer

    @classmethod
    def of(
        cls,
        rows: Iterable[Completion],
        has_texts: Callable[[Completion], bool] = lambda _: True,
    ) -> "ScoredRows":
        """Return the rows as columns, with the texts of those that need them."""
        fields: list[tuple[Any, ...]] = []
        scores: dict[tuple[str, str], array[float]] = {}
        meta: dict[str, Mapping[str, Any]] = {}
        shared: dict[object, object] = {}  # one object for equal names
        for index, row in enumerate(rows):
            values = _text_fields(row) if has_texts(row) else (None,) * len(_TEXT_FIELDS)
            names = (row.id, row.model, row.suite, row.prompt_type, row.category)
            fields.append((*(shared.setdefault(name, name) for name in names), row.k, *values))
            for scorer, given in row.scores.items():
                for metric, value in ({ALL: None} if given is None else given).items():
                    column = scores.setdefault((scorer, metric), array("d"))
                    column.extend([np.nan] * (index - len(column)))
                    column.append(FAILED if value is None else value)
            meta.update(row.score_meta)
        for column in scores.values():
            column.extend([np.nan] * (len(fields) - len(column)))
        return cls(
            pd.DataFrame(fields, columns=[*_NAMES, *_TEXT_FIELDS], dtype=object),
            pd.DataFrame(scores, index=range(len(fields))),
            meta,
        )

    def __len__(self) -> int:
        return len(self.fields)

    @property
    def score_names(self) -> list[tuple[str, str]]:
        """The scorer and metric of each column of scores."""
        names: list[Any] = self.scores.columns.to_list()
        return names

    @property
    def scorers(self) -> list[str]:
        """Every scorer that applies to any row, in the order in which they first occur."""
        return list(dict.fromkeys(scorer for scorer, _ in self.score_names))

    def metrics(self, scorer: str) -> list[str]:
        """The metrics of a scorer, sorted; none where it failed on every row."""
        return sorted(m for name, m in self.score_names if name == scorer and m != ALL)

    def threshold(self, scorer: str, default: float) -> float:
        """Return the main score from which a scorer counts a row as positive."""
        threshold = self.meta.get(scorer, {}).get("threshold")
        return default if threshold is None else float(threshold)

    def where(self, mask_S: Bools | pd.Series) -> "ScoredRows":
        """The rows of the mask, and the scores that apply to any of them."""
        mask_S = np.asarray(mask_S, dtype=bool)
        scores = self.scores.loc[mask_S].dropna(axis="columns", how="all")
        return ScoredRows(self.fields.loc[mask_S], scores, self.meta)

    @property
    def kind(self) -> pd.Series:
        """The kind of samples of each row: its suite before a colon."""
        return self.fields["suite"].map(lambda suite: suite.partition(":")[0])

    def of_suite(self, kind: str) -> "ScoredRows":
        """The rows of a kind of samples."""
        return self.where(self.kind == kind)

    def by(self, field: str) -> Iterator[tuple[Any, "ScoredRows"]]:
        """Each value of a field, in the order in which they first occur, with its rows."""
        for value in dict.fromkeys(self.fields[field]):
            yield value, self.where(self.fields[field] == value)

    def has(self, scorer: str, metric: str) -> Bools:
        """Return whether a scorer applies to each row: it gave a value, or failed."""
        applies_S = np.zeros(len(self), dtype=bool)
        for column in ((scorer, metric), (scorer, ALL)):
            if column in self.scores:
                applies_S |= self.scores[column].notna().to_numpy()
        return applies_S

    def judged(self, scorer: str, metric: str) -> "ScoredRows":
        """The rows to which a scorer applies."""
        return self.where(self.has(scorer, metric))

    def score(self, scorer: str, metric: str) -> Floats:
        """The scores, NaN where the scorer failed or does not apply."""
        if (scorer, metric) not in self.scores:
            return np.full(len(self), np.nan)
        score_S = self.scores[scorer, metric].to_numpy(dtype=float)
        return np.where(score_S == FAILED, np.nan, score_S)

    def number(self, field: str) -> Floats:
        """A field as numbers, NaN where it is not given."""
        return self.fields[field].to_numpy(dtype=float)


def _text_fields(row: Completion) -> tuple[object, ...]:
    """`reference` is the reference answer or, where there is none, all of the prompt."""
    extra = row.prompt_extra.get(WORLD, row.prompt_extra)
    reference = str(extra.get("reference", (row.history, row.context, row.prompt)))
    return row.completion, row.answerable, row.n_tokens, row.ended, reference


def share_of(condition_S: Bools, value_S: Floats) -> Floats:
    """Return 1 where a condition on a value holds and 0 where not, NaN where there is no value."""
    return np.where(np.isnan(value_S), np.nan, condition_S.astype(float))
