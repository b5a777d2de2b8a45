"""Micro-batches cut where that saves padding: the cheapest cut, and the same update."""

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.ppo.episodes import Episodes, by_length, fitted_sizes
from stages.ppo.iteration import iterate
from tests.stages.tiny_ppo import tiny_config, tiny_learner, tiny_world

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=9).map(sorted)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 80))
def test_no_other_way_to_cut_costs_less(lengths: list[int], most: int, overhead: int) -> None:
    found = fitted_sizes(lengths, most, overhead=overhead)
    ways = [
        sizes_of(ends, len(lengths)) for ends in product((False, True), repeat=len(lengths) - 1)
    ]
    allowed = [sizes for sizes in ways if max(sizes) <= most]
    assert found in allowed
    assert cost(lengths, found, overhead) == min(cost(lengths, one, overhead) for one in allowed)


def sizes_of(ends: tuple[bool, ...], rows: int) -> list[int]:
    """Of the batches, where `ends[i]` says that one ends behind row i."""
    places = [i + 1 for i, over in enumerate(ends) if over]
    return [b - a for a, b in zip([0, *places], [*places, rows], strict=True)]


def cost(lengths: list[int], sizes: list[int], overhead: int) -> int:
    total, start = 0, 0
    for size in sizes:
        total += max(lengths[start : start + size]) * size + overhead
        start += size
    return total


def test_rows_of_one_length_are_cut_into_full_batches() -> None:
    assert fitted_sizes([20] * 32, 8, overhead=80) == [8, 8, 8, 8]


def test_a_long_row_gets_a_batch_of_its_own() -> None:
    ids_BL = torch.ones(8, 400, dtype=torch.long)
    mask_BL = torch.arange(400) >= torch.tensor([390] * 7 + [0])[:, None]
    episodes = Episodes(ids_BL, mask_BL, mask_BL, torch.ones(8, dtype=torch.bool))
    rows = torch.arange(8)
    fitted = [part.tolist() for part in by_length(episodes, rows, 8, fitted=True)]
    assert fitted == [list(range(7)), [7]]
    assert [len(part) for part in by_length(episodes, rows, 8)] == [8]


@pytest.mark.parametrize("sharing", [1, 2])
def test_an_iteration_is_the_same_however_micro_batches_are_cut(
    tmp_path: Path, sharing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.ppo.episodes.PASS_COSTS", 2)
    world, found, weights = tiny_world(tmp_path), [], []
    for fit in (True, False):
        config = tiny_config(
            fit_micro_batches=fit, micro_batch_size=4, responses_per_prompt=sharing
        )
        learner = tiny_learner(world, config)
        assert learner.fitted == fit
        prompts = [[5, 6, 7 + n // sharing] * (1 + n // sharing) for n in range(8)]
        said = iterate(learner, prompts, None, 0, 0.05, sharing=sharing)
        found.append({k: v for k, v in said.items() if not k.startswith("time/")})
        weights.append(
            torch.cat([p.detach().flatten() for p in learner.models.policy.parameters()])
        )
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-5)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-4)
