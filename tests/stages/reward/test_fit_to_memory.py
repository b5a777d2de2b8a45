"""Micro-batches of rankings as large as the memory: what is predicted, and what it changes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.distributed import memory as device_memory
from stages.models import load_tokenizer
from stages.reward import train as reward_cut
from stages.reward.batches import RankedPrompt, split_rankings
from stages.reward.config import RewardConfig
from stages.reward.shared_prompt import SeparateRows, SharedPrompt, choose_layout
from stages.reward.train import new_reward_model
from tests.stages.adapters.family_cells import FAMILIES
from tests.stages.allocator import allocated_peak
from tests.stages.reward.test_train import (
    CONFIG,
    Steps,
    World,
    assert_same_bits,
    moved,
    ranked_world,
)

SLOW = pytest.mark.slow
BRIEF = ("full", "lora", "prefix")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return ranked_world(tmp_path_factory.mktemp("world"))


def elements_of(world: World) -> list[RankedPrompt]:
    tokenizer = load_tokenizer(world.base)
    return list(split_rankings(CONFIG, tokenizer, world.tasks, world.rankings, 0).train)


@pytest.mark.parametrize(
    "family", [pytest.param(one, marks=() if one in BRIEF else SLOW) for one in FAMILIES]
)
@pytest.mark.parametrize("layout", [SharedPrompt(), SeparateRows()], ids=["shared", "separate"])
def test_a_dry_run_predicts_what_the_allocator_measures(
    world: World, tmp_path: Path, family: str, layout: SharedPrompt | SeparateRows
) -> None:
    elements = elements_of(world)
    model = new_reward_model(RewardConfig(adaptation=FAMILIES[family]), world.base, 0)
    choose_layout(model, elements)  # its attention learns to read segments
    longest = max(elements, key=lambda element: element.row_tokens)

    def work(prompts: int) -> Callable[[], None]:
        batch = layout.collate([longest] * prompts)
        return lambda: reward_cut.forward_backward(model, layout.inputs(batch))

    work(1)()  # what is made once is there
    seen = [allocated_peak(work(prompts), tmp_path) for prompts in (4, 8)]
    cost = reward_cut.forward_backward_cost(model, layout, elements)
    each = (seen[1] - seen[0]) / 4
    assert 0.9 * each <= cost.each <= 1.2 * each  # what a kernel takes for itself is not seen
    assert 0.9 * seen[1] <= cost.bytes(8) <= 1.3 * seen[1]


def given_memory(monkeypatch: pytest.MonkeyPatch, world: World, prompts: float) -> None:
    """Let there be as much as so many prompts with their responses take, moments included."""
    elements, model = elements_of(world), new_reward_model(CONFIG, world.base, 0)
    cost = reward_cut.forward_backward_cost(model, choose_layout(model, elements), elements)
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    free = moments + (cost.fixed + prompts * cost.each) / device_memory.USED
    monkeypatch.setattr(reward_cut, "free_memory", lambda _: int(free) + 1)


def test_scarce_memory_cuts_micro_batches_and_changes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 1e-4})
    world.train(tmp_path / "plenty", config)
    given_memory(monkeypatch, world, 5.0)
    sizes: list[int] = []
    original = reward_cut.fit_to_memory

    def cut(arguments: Any, *given: Any) -> None:
        original(arguments, *given)
        sizes.append(arguments.per_device_train_batch_size)

    monkeypatch.setattr("stages.reward.train.fit_to_memory", cut)
    world.train(tmp_path / "scarce", config)
    assert sizes == [4]  # the most that fits and divides the batch of 8
    plenty, scarce = moved(world, tmp_path / "plenty"), moved(world, tmp_path / "scarce")
    # Adam turns a rounding difference in a gradient near zero into a step of up to the rate.
    assert ((plenty - scarce).abs() < 1e-5).float().mean() > 0.99


def test_a_run_that_goes_on_with_more_memory_ends_with_the_same_bits(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as scarce:
        given_memory(scarce, world, 2.0)
        world.train(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            world.train(tmp_path / "broken", report=Steps(stop_after=3))
    world.train(tmp_path / "broken")
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")


def test_too_little_memory_is_warned_of_and_tried(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(reward_cut, "free_memory", lambda _: 1000)
    with caplog.at_level(logging.WARNING):
        world.train(tmp_path)
    assert "memory may not suffice" in caplog.text


def test_a_model_that_computes_with_values_gets_whole_batches(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def needs_values(*_: Any) -> None:
        torch.ones(2).sum().item()

    monkeypatch.setattr(reward_cut, "forward_backward", needs_values)
    with caplog.at_level(logging.WARNING):
        world.train(tmp_path)
    assert "every micro-batch is a whole batch, fitting or not" in caplog.text
