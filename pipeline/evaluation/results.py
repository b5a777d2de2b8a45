"""All numbers of one evaluation: cells, paired comparisons, who scored, and what must be said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.comparisons import Comparison, comparisons, corrected
from pipeline.evaluation.samples import Completion
from pipeline.evaluation.tables import Cell, Resampling, Table, cells


@dataclass(frozen=True, slots=True)
class Results:
    """Everything a report or a table needs, and nothing that must be computed again."""

    cells: Sequence[Cell]
    comparisons: Sequence[Comparison]
    scorers: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """In the order in which they were evaluated."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    def cell(self, model: str, suite: str, metric: str, filter: str = "all") -> Cell | None:
        """The one cell of that name, or None."""
        for cell in self.cells:
            q = cell.quantity
            if (cell.model, q.suite, q.metric, q.filter) == (model, suite, metric, filter):
                return cell
        return None

    def comparison(
        self, a: str, b: str, suite: str, metric: str, filter: str = "all"
    ) -> Comparison | None:
        """The comparison of a with b of that name, or None."""
        for found in self.comparisons:
            q = found.quantity
            if (found.a, found.b) == (a, b) and (q.suite, q.metric, q.filter) == (
                suite,
                metric,
                filter,
            ):
                return found
        return None


def results_of(
    tables: Sequence[Table],
    pairs: Sequence[tuple[str, str]],
    resampling: Resampling,
    *,
    scorers: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
    about: Mapping[str, Any],
) -> Results:
    """Cells and corrected comparisons of all tables."""
    found = [cell for table in tables for cell in cells(table, resampling)]
    compared = [each for table in tables for each in comparisons(table, pairs, resampling)]
    return Results(found, corrected(compared), scorers, list(notes), about)


def scorer_identities(rows: Sequence[Completion]) -> dict[str, Mapping[str, Any]]:
    """Name to version, hash and threshold of every scorer of these rows."""
    return {name: meta for row in rows for name, meta in row.score_meta.items()}


def check_failures(results: Results, max_failed: float) -> None:
    """Raise ValueError if more than this share of the rows of any cell could not be scored."""
    for cell in results.cells:
        total = cell.n_failed + cell.n_samples
        if cell.n_failed > max_failed * total:
            q = cell.quantity
            raise ValueError(
                f"{q.scorer} failed on {cell.n_failed} of {total} rows of {cell.model} "
                f"({q.suite}, {q.metric}, {q.filter}); expected at most {max_failed:.0%}"
            )
