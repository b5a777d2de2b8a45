"""results.json: everything that was written is read back."""

from pathlib import Path

import pytest

from pipeline.evaluation.samples.results import read_results, results_of, write_results
from pipeline.evaluation.samples.tables import Quantity, Resampling
from tests.pipeline.made_up_run import made_up_results, table


@pytest.mark.parametrize("suite", ["toxicity", "toxicity_guard org/model", "a,b/c d"])
@pytest.mark.parametrize("part", ["all", "of a, and b/c"])
def test_a_number_is_read_back_whatever_its_suite_and_part_are_called(
    suite: str, part: str, tmp_path: Path
) -> None:
    quantity = Quantity(suite, "share", part, "judge v1/2", "lower")
    judge = {"judge v1/2": {"version": "1", "sha256": "ab", "threshold": None}}
    pairs = [("sft", "base")]
    results = results_of(
        [table(quantity, 0.4, 0.1)], pairs, Resampling(50, 50), scorers=judge, notes=(), about={}
    )
    write_results(results, tmp_path / "results.json")
    again = read_results(tmp_path / "results.json")
    assert list(again.cells) == list(results.cells)
    assert list(again.comparisons) == list(results.comparisons)


def test_a_whole_evaluation_is_read_back(tmp_path: Path) -> None:
    results = made_up_results()
    write_results(results, tmp_path / "results.json")
    again = read_results(tmp_path / "results.json")
    assert set(again.cells) == set(results.cells)
    assert list(again.comparisons) == list(results.comparisons)
    assert (again.scorers, again.notes, again.about) == (
        results.scorers,
        results.notes,
        results.about,
    )
