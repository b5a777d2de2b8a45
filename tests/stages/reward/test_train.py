"""Stage two learns from rankings, however a batch is cut and however often it is broken off."""

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reward_models.model import RewardModel
from reward_models.records import Demonstration, Prompt, Ranking, RankingTask
from stages.adapters.config import LoRA
from stages.distributed import checkpoints
from stages.generation.score import score_responses
from stages.models import load_tokenizer, tokenizer_hash
from stages.precision_config import Precision
from stages.progress import Report, Step, silent
from stages.reward.config import RewardConfig
from stages.reward.train import train_reward
from tests.reward_models.tiny import tiny_base, tiny_demonstrations, tiny_rankings, tiny_tasks

CONFIG = RewardConfig(learning_rate=5e-3, prompts_per_batch=8, held_out=0.2, checkpoint_every=2)

ADAPTED = CONFIG.model_copy(update={"adaptation": LoRA(rank=2), "optimizer": "paged_adamw_8bit"})
Unbroken = tuple[Path, list[Step]]


@dataclass
class Steps:
    """A listener that can break the run off."""

    stop_after: int | None = None
    seen: list[Step] = field(default_factory=list)

    def __call__(self, step: Step) -> None:
        if step.done:
            self.seen.append(step)
        if step.done == self.stop_after:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class World:
    base: Path
    tasks: list[RankingTask]
    rankings: list[Ranking]
    demonstrations: list[Demonstration]

    def train(
        self, out: Path, config: RewardConfig = CONFIG, report: Report = silent, seed: int = 0
    ) -> dict[str, object]:
        train_reward(
            config,
            base=self.base,
            tasks=self.tasks,
            rankings=self.rankings,
            demonstrations=self.demonstrations,
            out=out,
            seed=seed,
            report=report,
        )
        results: dict[str, object] = json.loads((out / "held_out.json").read_text())
        return results


def ranked_world(folder: Path) -> World:
    rng = random.Random(0)
    tasks = tiny_tasks(60, rng)
    return World(
        tiny_base(folder / "base"),
        tasks,
        tiny_rankings(tasks, ["ann", "ben"], rng, noise=0.5),
        tiny_demonstrations(10, rng),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return ranked_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def unbroken(world: World, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """A run by CONFIG that nothing broke off, for tests that only look at it."""
    out, steps = tmp_path_factory.mktemp("unbroken"), Steps()
    world.train(out, report=steps)
    return out, steps.seen


@pytest.fixture(scope="module")
def adapted(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of an adapter."""
    out = tmp_path_factory.mktemp("adapted")
    world.train(out, ADAPTED)
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    results = load_file(out / "model" / "model.safetensors")
    return results | load_file(out / "model" / "head.safetensors")


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (one / "model" / "reward.json").read_text() == (
        other / "model" / "reward.json"
    ).read_text()
    assert (one / "held_out.json").read_text() == (other / "held_out.json").read_text()


def moved(world: World, out: Path) -> torch.Tensor:
    """By how much training moved each weight."""
    before = RewardModel.from_base(world.base, 0).backbone.state_dict()
    after = weights(out)
    changes = (after[f"model.{name}"] - value for name, value in before.items())
    return torch.cat([change.flatten() for change in changes])


def test_rankings_teach_the_annotators_taste(tmp_path: Path) -> None:
    rng = random.Random(1)
    tasks = tiny_tasks(400, rng)
    rankings = tiny_rankings(tasks, ["ann"], rng)
    base = tiny_base(tmp_path / "base")
    steps = Steps()
    config = RewardConfig(learning_rate=1e-2, prompts_per_batch=8, held_out=0.2)
    results = World(base, tasks, rankings, []).train(tmp_path / "out", config, steps)
    assert results["ci95"][0] > 0.75  # type: ignore[index]
    losses = [step.metrics["reward/loss_nats_per_pair"] for step in steps.seen]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    model, tokenizer = RewardModel.load(tmp_path / "out" / "model"), load_tokenizer(base)
    good, bad = score_responses(
        model, tokenizer, [Prompt("w0 w3")] * 2, ["w1 good good", "w1 bad bad"]
    )
    assert good > bad


@pytest.mark.parametrize("element", ["prompt", "ranking"])
def test_eight_accumulated_micro_batches_of_one_equal_one_of_eight(
    world: World, tmp_path: Path, element: str
) -> None:
    settings = CONFIG.model_dump() | {"batch_element": element, "learning_rate": 1e-4}
    world.train(tmp_path / "whole", RewardConfig(**settings))
    world.train(tmp_path / "cut", RewardConfig(**settings | {"micro_prompts": 1}))
    whole, cut = moved(world, tmp_path / "whole"), moved(world, tmp_path / "cut")
    assert whole.abs().max() > 1e-4
    # Adam turns a rounding difference in a gradient near zero into a step of up to the rate.
    assert ((whole - cut).abs() < 1e-5).float().mean() > 0.99


def test_micro_batches_report_the_loss_of_the_whole_batch(
    world: World, unbroken: Unbroken, tmp_path: Path
) -> None:
    cut = Steps()
    world.train(tmp_path, CONFIG.model_copy(update={"micro_prompts": 2}), cut)
    for name in ("reward/loss_nats_per_pair", "reward/pair_accuracy", "reward/gradient_norm"):
        first, second = unbroken[1][0].metrics[name], cut.seen[0].metrics[name]
        assert first == pytest.approx(second, rel=1e-4)


def test_two_runs_with_one_seed_are_the_same_to_the_bit(
    world: World, unbroken: Unbroken, tmp_path: Path
) -> None:
    world.train(tmp_path)
    assert_same_bits(unbroken[0], tmp_path)


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_resumed_run_ends_where_an_unbroken_run_ends(
    world: World, unbroken: Unbroken, tmp_path: Path, stop_after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.train(tmp_path, report=Steps(stop_after))
    again = Steps()
    world.train(tmp_path, report=again)
    assert len(again.seen) == 6 - 2 * ((stop_after - 1) // 2)
    assert_same_bits(unbroken[0], tmp_path)


def test_a_run_resumed_in_its_second_epoch_ends_where_an_unbroken_run_ends(
    world: World, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"epochs": 2, "micro_prompts": 4})
    world.train(tmp_path / "unbroken", config)
    with pytest.raises(KeyboardInterrupt):
        world.train(tmp_path / "broken", config, Steps(9))
    world.train(tmp_path / "broken", config)
    assert_same_bits(tmp_path / "unbroken", tmp_path / "broken")


def test_a_checkpoint_cut_short_is_ignored_and_removed(
    world: World, unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_flush", killed)
        with pytest.raises(KeyboardInterrupt):
            world.train(tmp_path)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["incomplete"]
    world.train(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-4", "checkpoint-6"]
    assert_same_bits(unbroken[0], tmp_path)


def test_a_run_broken_off_after_training_only_finishes(
    world: World, unbroken: Unbroken, tmp_path: Path
) -> None:
    out, again = shutil.copytree(unbroken[0], tmp_path / "out"), Steps()
    (out / "held_out.json").unlink()
    world.train(out, report=again)
    assert again.seen == []
    assert_same_bits(unbroken[0], out)


def test_demonstrations_score_zero_on_average(world: World, unbroken: Unbroken) -> None:
    folder = unbroken[0] / "model"
    model, tokenizer = RewardModel.load(folder), load_tokenizer(folder)
    prompts = [Prompt(one.prompt) for one in world.demonstrations]
    responses = [one.response for one in world.demonstrations]
    scores = score_responses(model, tokenizer, prompts, responses)
    assert sum(scores) / len(scores) == pytest.approx(0.0, abs=1e-5)


def test_the_artefact_names_tokenizer_base_and_who_labelled(world: World, unbroken: Unbroken):
    card = RewardModel.load(unbroken[0] / "model").card
    assert card.tokenizer == tokenizer_hash(load_tokenizer(world.base))
    assert card.label_kinds == ("simulated",)
    assert card.base == str(world.base)


def test_an_adapter_learns_and_is_saved_alone(adapted: Path) -> None:
    names = {path.name for path in (adapted / "model").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    adapter = load_file(adapted / "model" / "adapter_model.safetensors")
    assert max(value.abs().max() for name, value in adapter.items() if "lora_B" in name) > 0
    trained = load_file(adapted / "checkpoints" / "checkpoint-6" / "trained.safetensors")
    assert {name for name in trained if "lora" not in name} == {"head.weight"}


def test_an_adapter_resumed_ends_where_an_unbroken_one_ends(
    world: World, adapted: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        world.train(tmp_path, ADAPTED, Steps(3))
    world.train(tmp_path, ADAPTED)
    files = [out / "model" / "adapter_model.safetensors" for out in (adapted, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_every_step_is_reported(unbroken: Unbroken) -> None:
    assert [(step.done, step.total) for step in unbroken[1]] == [(n, 6) for n in range(1, 7)]


def test_the_learning_rate_falls_from_its_peak_along_a_cosine_to_a_tenth(unbroken: Unbroken):
    rates = [step.metrics["reward/learning_rate"] for step in unbroken[1]]
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]
    assert rates == pytest.approx([CONFIG.learning_rate * share for share in expected])


def test_held_out_accuracy_is_reported_with_its_ceiling(unbroken: Unbroken) -> None:
    results = json.loads((unbroken[0] / "held_out.json").read_text())
    assert results["n_prompts"] == 12
    assert results["trained_prompts"] == 48 - results["left_out"]["tasks_without_pair"]
    within, across = results["within_model"], results["across_models"]
    assert within["n_pairs"] + across["n_pairs"] == results["n_pairs"]
    assert 0.5 < results["ceiling"]["oracle_accuracy"]["value"] <= 1.0
    assert len(results["by_confidence"]) == 5
    assert results["label_kinds"] == ["simulated"]


def broken(
    world: World, tmp_path: Path, rankings: Callable[[list[Ranking]], list[Ranking]]
) -> None:
    World(world.base, world.tasks, rankings(world.rankings), []).train(tmp_path / "out")


def test_fewer_ranks_than_responses_is_one_line_and_writes_nothing(world: World, tmp_path: Path):
    def lose_one(rankings: list[Ranking]) -> list[Ranking]:
        first, *rest = rankings
        ranks = dict(list(first.ranks.items())[1:])
        return [Ranking(first.task, first.annotator, first.kind, ranks), *rest]

    with pytest.raises(ValueError, match=r"\d responses but \d ranks for prompt 'w0"):
        broken(world, tmp_path, lose_one)
    assert not (tmp_path / "out").exists()


def test_rankings_that_are_all_skipped_leave_nothing_to_learn_from(world: World, tmp_path: Path):
    def skip(rankings: list[Ranking]) -> list[Ranking]:
        return [Ranking(one.task, one.annotator, one.kind, {}, skipped="odd") for one in rankings]

    with pytest.raises(ValueError, match="none to train on"):
        broken(world, tmp_path, skip)


@pytest.mark.parametrize(
    ("further", "equal"),
    [
        ({"activation_checkpointing": True}, True),
        ({"precision": Precision(compute="bf16")}, False),
        ({"trainer": {"adam_epsilon": 0.1}}, False),
    ],
)
def test_checkpointing_changes_no_bit_and_further_settings_reach_the_trainer(
    world: World, unbroken: Unbroken, tmp_path: Path, further: dict[str, object], *, equal: bool
) -> None:
    other = Steps()
    world.train(tmp_path, CONFIG.model_copy(update=further), other)
    plain, changed = (
        [step.metrics["reward/gradient_norm"] for step in steps if step.total]
        for steps in (unbroken[1], other.seen)
    )
    assert plain[0] == pytest.approx(changed[0], rel=0.05)
    assert (plain == changed) is equal


@pytest.mark.parametrize(
    ("argument", "message"),
    [("lerning_rate", "is not a training argument"), ("learning_rate", "is set by the stage")],
)
def test_a_training_argument_that_is_unknown_or_ours_is_refused(
    world: World, tmp_path: Path, argument: str, message: str
) -> None:
    config = CONFIG.model_copy(update={"trainer": {argument: 1.0}})
    with pytest.raises(ValueError, match=rf"trainer\.{argument} {message}"):
        world.train(tmp_path, config)


def test_micro_prompts_must_divide_the_batch() -> None:
    with pytest.raises(
        ValueError, match=r"micro_prompts \(3\) must divide prompts_per_batch \(8\)"
    ):
        RewardConfig(prompts_per_batch=8, micro_prompts=3)
