"""Micro-batches as large as the memory: what is predicted, what is chosen, what it changes."""

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.data.template import prompt_ids
from stages.distributed import memory as device_memory
from stages.distributed.memory import Cost, cost_of, peak_bytes
from stages.ppo import micro_batches
from stages.ppo.forward_checks import obstacle_to_packing
from stages.ppo.micro_batches import MicroBatch, reserved_bytes, update_cost
from tests.reward_models.tiny import tiny_reward
from tests.stages.adapters.family_cells import ARCHITECTURES, FAMILIES, save_base
from tests.stages.allocator import allocated_peak
from tests.stages.ppo.test_resume import PowerCutError, assert_same_result, cut_at
from tests.stages.ppo.tiny_ppo import (
    PROMPTS,
    metrics_of,
    tiny_config,
    tiny_models,
    tiny_run,
    tiny_world,
    train,
)

World = tuple[Path, Path]
PTX = {"coefficient": 1.0, "examples_per_episode": 1.0, "tokens_per_example": 8}
AUTO: dict[str, Any] = {"micro_batch_size": "auto", "minibatch": 8, "pretraining": PTX}
KINDS = ("separate", "shared-critic")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


def test_what_a_dry_run_counts_is_what_lives_at_once() -> None:
    start = torch.ones(100, 10)

    def work() -> None:
        a = start + 1  # 4,000 bytes
        b = a.view(10, 100) * 2  # as many beside it
        del a
        b.add_(1)  # in place
        c = torch.cat([b, b, b])  # three times as many beside b
        del b, c

    assert peak_bytes(work) == 16_000


def test_nothing_is_computed_in_a_dry_run() -> None:
    def work() -> None:
        x = torch.empty(1 << 40, 1 << 10)  # four pebibytes
        assert (x + x).shape == x.shape

    assert peak_bytes(work) == 2 * 4 << 50


def marks(family: str, architecture: str, kind: str) -> Any:
    common = family == "lora" or (architecture == "llama" and family in ("full", "prefix"))
    return () if common and kind == "separate" else pytest.mark.slow


CELLS = [
    pytest.param(*cell, marks=marks(*cell)) for cell in product(FAMILIES, ARCHITECTURES, KINDS)
]


@pytest.mark.parametrize(("family", "architecture", "kind"), CELLS)
def test_a_dry_run_predicts_what_the_allocator_measures(
    tmp_path: Path, family: str, architecture: str, kind: str
) -> None:
    base = save_base(architecture, tmp_path / "base")
    adaptation = FAMILIES[family].model_dump()
    config = tiny_config(adaptation=adaptation, models={"kind": kind}, minibatch=8)
    models = tiny_models((base, tiny_reward(base, tmp_path / "reward")), config)
    assert obstacle_to_packing(models, [5, 6, 7], 4, 2) is None
    for packed in (True, False):
        models = replace(models, packed=packed)

        def work_on(rows: int) -> Callable[[], None]:
            return micro_batches.update_of(models, config, [5, 6, 7] * 5, rows)  # noqa: B023

        work_on(1)()  # what is made once is there
        seen = [allocated_peak(work_on(rows), tmp_path) for rows in (4, 8)]
        cost = cost_of(work_on)
        each = (seen[1] - seen[0]) / 4
        assert 0.95 * each <= cost.each <= 1.2 * each  # a mask of ones is not seen to be one
        assert 0.95 * seen[1] <= cost.bytes(8) <= 1.3 * seen[1]


@given(
    fixed=st.integers(0, 10**12), each=st.integers(1, 10**10), room=st.integers(-(10**12), 10**13)
)
def test_rows_are_the_most_that_fit(fixed: int, each: int, room: int) -> None:
    cost = Cost(fixed, each)
    rows = cost.rows(room)
    assert cost.bytes(rows + 1) > room
    assert rows == 0 or cost.bytes(rows) <= room


def given_memory(
    monkeypatch: pytest.MonkeyPatch, world: World, config: Any, episodes: float
) -> None:
    """Let there be as much as so many episodes of an update take, moments included."""
    run = tiny_run(world, config)
    prompts = [prompt_ids(run.models.tokenizer, one.prompt, one.context) for one in PROMPTS]
    update = update_cost(run.models, config, prompts)
    assert update is not None
    cost = update.episodes
    longest = max(map(len, prompts)) + config.sampling.max_new_tokens
    networks, tokens = (run.policy, run.critic), config.episodes_per_rollout * longest
    to_come = reserved_bytes(networks, run.models.lower, tokens, run.config)
    free = to_come + (cost.fixed + episodes * cost.each) / device_memory.USED
    monkeypatch.setattr(micro_batches, "free_memory", lambda _: int(free) + 1)


def test_scarce_memory_cuts_micro_batches_and_changes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**AUTO, responses_per_prompt=2, episodes=16)
    plenty = metrics_of(world, tmp_path / "plenty", config)
    given_memory(monkeypatch, world, config, 5.0)
    chosen: list[MicroBatch] = []

    def fitting(*given: Any) -> MicroBatch:
        chosen.append(micro_batches.fitting(*given))
        return chosen[-1]

    monkeypatch.setattr("stages.ppo.train.fitting", fitting)
    scarce = metrics_of(world, tmp_path / "scarce", config)
    assert [one.episodes for one in chosen] == [4]  # a prompt's two responses stay together
    for step, other in zip(scarce, plenty, strict=True):
        for name in ("ppo/score", "ppo/policy_loss", "ppo/value_loss", "ppo/gradient_norm"):
            assert step[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name


def test_where_all_fits_a_minibatch_is_one_micro_batch(world: World) -> None:
    run = tiny_run(world, tiny_config(**AUTO))
    assert run.micro == MicroBatch(8, 8)


def test_a_run_that_goes_on_with_more_memory_ends_with_the_same_bits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**AUTO, checkpoint_every=1)
    with monkeypatch.context() as scarce:
        given_memory(scarce, world, config, 3.0)
        train(world, tmp_path / "whole", config)
        with pytest.raises(PowerCutError):
            train(world, tmp_path / "broken", config, cut_at(3))
    train(world, tmp_path / "broken", config)
    assert_same_result(tmp_path / "broken", tmp_path / "whole")


def test_too_little_memory_is_warned_of_and_tried(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(micro_batches, "free_memory", lambda _: 1000)
    with caplog.at_level(logging.WARNING):
        train(world, tmp_path, tiny_config(**AUTO, episodes=8))
    assert "memory may not suffice: 9.31e-07 GiB is free, and the smallest update" in caplog.text


def test_first_passes_are_kept_only_where_all_of_them_fit(world: World) -> None:
    run = tiny_run(world, tiny_config(**AUTO, cached={"first_forward": True}))
    assert run.keeps_first_forward
    run.micro = MicroBatch(4, 8)
    assert not run.keeps_first_forward


@pytest.mark.parametrize(("size", "survives"), [(256, False), ("auto", True)])
def test_a_process_with_a_limit_lives_by_itself(
    tmp_path: Path, size: int | str, survives: bool
) -> None:
    """A real limit, under which a whole minibatch cannot be allocated."""
    command = [sys.executable, "-m", "tests.stages.ppo.tight_memory", str(tmp_path), str(size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if survives:
        assert done.returncode == 0, done.stderr
        assert 1 <= int(done.stdout.split()[-1]) < 256
    else:
        assert "can't allocate memory" in done.stderr


def group(folder: Path, names: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in names.items():
        (folder / name).write_text(text + "\n")


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    group(proc, {"cgroup": "0::/pod/box"})
    group(groups / "pod/box", {"memory.max": "max", "memory.current": "1000", "memory.stat": ""})
    stat = "anon 5000\ninactive_file 2000"
    group(groups / "pod", {"memory.max": "9000", "memory.current": "7000", "memory.stat": stat})
    monkeypatch.setattr(device_memory, "PROC", proc)
    monkeypatch.setattr(device_memory, "CGROUPS", groups)
    assert device_memory.free_memory(torch.device("cpu")) == 9000 - 7000 + 2000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device_memory.free_memory(torch.device("cpu")) == 2000
    group(proc, {"cgroup": "5:devices:/\n4:memory:/box\n0::/"})
    old = {"memory.limit_in_bytes": "3000", "memory.usage_in_bytes": "2500"}
    group(groups / "memory/box", old | {"memory.stat": "total_inactive_file 100"})
    assert device_memory.free_memory(torch.device("cpu")) == 300
