"""Many scored rows in little memory: numbers in arrays, and one record for all rows of a kind.

Tables read who answered which prompt and what scorers made of it; texts they do not read are gone.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from pipeline.evaluation.samples.records import Completion, Scores

_NAN = float("nan")
_Shape = tuple[tuple[str, tuple[str, ...] | None], ...]  # scorers and the metrics of each


@dataclass(frozen=True, slots=True)
class _Kind:
    """What all rows of one model, suite, prompt type and shape of scores share."""

    row: Completion
    shape: _Shape


class ScoredRows(Sequence[Completion]):
    """Rows that are made anew whenever they are read: without texts, or as they were if kept."""

    def __init__(self, number: Mapping[str, int]) -> None:
        self._number = number
        self._ids: list[str] = []
        self._kinds: list[_Kind] = []
        self._kind_of: dict[tuple[str, str, str, _Shape], int] = {}
        self._meta: dict[tuple[str, ...], Mapping[str, Mapping[str, Any]]] = {}
        self._whole: dict[int, Completion] = {}
        self._kind, self._id = array("i"), array("i")
        self._start, self._values = array("q"), array("d")

    def keep(self, row: Completion) -> None:
        """Add a row with its texts."""
        self._whole[len(self)] = row
        self.add(row)

    def add(self, row: Completion) -> None:
        """Add a row without its texts. A missing score is NaN, which no written score can be."""
        shape = tuple(
            (name, None if scores is None else tuple(scores)) for name, scores in row.scores.items()
        )
        key = (row.model, row.suite, row.prompt_type, shape)
        if key not in self._kind_of:
            self._kind_of[key] = len(self._kinds)
            meta = self._meta.setdefault(tuple(row.score_meta), row.score_meta)
            shared = Completion(
                id="", model=row.model, prompt="", completion="", suite=row.suite,
                prompt_type=row.prompt_type, score_meta=meta,
            )  # fmt: skip
            self._kinds.append(_Kind(shared, shape))
        self._kind.append(self._kind_of[key])
        self._id.append(self._number[row.id])
        self._start.append(len(self._values))
        for scores in row.scores.values():
            self._values.extend(_NAN if v is None else v for v in (scores or {}).values())

    def __len__(self) -> int:
        return len(self._kind)

    @overload
    def __getitem__(self, place: int) -> Completion: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Completion]: ...
    def __getitem__(self, place: int | slice) -> Completion | Sequence[Completion]:
        if isinstance(place, slice):
            return Chosen(self, range(*place.indices(len(self))))
        whole = self._whole.get(place)
        if whole is not None:
            return whole
        kind, at = self._kinds[self._kind[place]], self._start[place]
        scores: dict[str, Scores] = {}
        for name, metrics in kind.shape:
            if metrics is None:
                scores[name] = None
                continue
            end = at + len(metrics)
            found = self._values[at:end]
            scores[name] = {
                metric: value if value == value else None  # NaN differs from itself
                for metric, value in zip(metrics, found, strict=True)
            }
            at = end
        if len(self._ids) < len(self._number):
            self._ids = list(self._number)
        return replace(kind.row, id=self._ids[self._id[place]], scores=scores)


class Chosen(Sequence[Completion]):
    """Some of many rows, by their places."""

    def __init__(self, rows: Sequence[Completion], places: Sequence[int]) -> None:
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Completion]:
        return map(self._rows.__getitem__, self._places)

    @overload
    def __getitem__(self, place: int) -> Completion: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Completion]: ...
    def __getitem__(self, place: int | slice) -> Completion | Sequence[Completion]:
        if isinstance(place, slice):
            return Chosen(self._rows, self._places[place])
        return self._rows[self._places[place]]


def where(rows: Sequence[Completion], holds: Callable[[Completion], bool]) -> Sequence[Completion]:
    """The rows for which it holds: four bytes each, whatever the rows are."""
    return Chosen(rows, array("i", (place for place, row in enumerate(rows) if holds(row))))


def names_of(rows: Iterable[Completion]) -> list[str]:
    """Everyone who scored any row, in the order in which they first occur."""
    return list(dict.fromkeys(name for row in rows for name in row.scores))
