"""Stage three on several ranks, sharded or not, does what one process does."""

import os
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipeline.steps.ppo import WinRate
from reward_models.records import Prompt
from stages.ppo import micro_batches
from stages.ppo.micro_batches import MicroBatch
from stages.ppo.overoptimization import GoldReward
from stages.progress import Step
from tests.distributed.families import FAMILIES
from tests.distributed.ranks import Sharding, run_ranks
from tests.stages.ppo.tiny_ppo import (
    PROMPTS,
    metrics_of,
    probe_world,
    tiny_config,
    tiny_world,
    train,
)

World = tuple[Path, Path]
ALL: tuple[Sharding, ...] = ("ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2")
SETTINGS: dict[str, Any] = {
    "validation": {"every": 2},
    "ema_decay": 0.9,
    "pretraining": {"examples_per_episode": 0.75, "coefficient": 0.5, "tokens_per_example": 8},
}


def brief(cases: Sequence[Any], *brief_cases: Any) -> list[Any]:
    """All cases; those that are not among `brief_cases` are marked slow."""
    slow = pytest.mark.slow
    each = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        pytest.param(*values, marks=() if case in brief_cases else slow)
        for case, values in zip(cases, each, strict=True)
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("world"))


def trained(world: World, out: Path, settings: dict[str, Any]) -> list[dict[str, float]]:
    return metrics_of(world, out, tiny_config(**settings))


def weights(out: Path) -> dict[str, torch.Tensor]:
    ranks = {}
    for folder in (out / "model", out / "critic"):
        for file in sorted(folder.glob("*.safetensors")):
            ranks |= {f"{folder.name}/{file.stem}/{k}": v for k, v in load_file(file).items()}
    return ranks


def assert_alike(one: Path, other: Path) -> None:
    ours, others = weights(one), weights(other)
    assert ours.keys() == others.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, others[name], atol=1e-5, rtol=1e-4, msg=name)


def assert_same_course(ours: list[dict[str, float]], others: list[dict[str, float]]) -> None:
    assert len(ours) == len(others) > 0
    for step, other in zip(ours, others, strict=True):
        for name, value in other.items():
            if not name.startswith("time/"):
                assert step[name] == pytest.approx(value, abs=1e-4, rel=1e-3), name


def assert_as_one(
    world: World,
    folder: Path,
    settings: dict[str, Any],
    sharding: Sharding,
    *,
    alone: dict[str, Any] | None = None,
    processes: int = 2,
) -> list[list[dict[str, float]]]:
    """Ranks train what one process trains, perhaps under `alone`; return every rank's metrics."""
    expected = trained(world, folder / "one", alone or settings)
    if sharding == "zero3-offload":  # its gradients are on their way until the step
        for step in expected:
            step.pop("ppo/pretraining_gradient_ratio", None)
    ranks = run_ranks(
        trained, world, folder / "ranks", settings, processes=processes, sharding=sharding
    )
    assert_same_course(ranks[0], expected)
    assert_alike(folder / "one", folder / "ranks")
    return ranks


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(ALL, "zero2", "zero3", "fsdp2"))
def test_two_ranks_train_what_one_trains(world: World, tmp_path: Path, sharding: Sharding) -> None:
    first, second = assert_as_one(world, tmp_path, SETTINGS, sharding)
    assert all(step["ppo/first_ratio_error"] == 0.0 for step in first)
    assert second == []


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("sharding", ["ddp", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("family", ["full", "lora"])
def test_ranks_compute_in_the_precision_of_the_config(
    world: World, tmp_path: Path, family: str, sharding: Sharding
) -> None:
    settings = {
        "adaptation": FAMILIES[family].model_dump(),
        "precision": {"compute": "bf16"},
        "episodes": 16,
    }
    alone = trained(world, tmp_path / "one", settings)
    first, _ = run_ranks(
        trained, world, tmp_path / "ranks", settings, processes=2, sharding=sharding
    )
    assert all(step["ppo/first_ratio_error"] <= 1e-2 for step in first)
    assert first[0]["ppo/kl_nats"] == 0.0
    assert first[0]["ppo/score"] == pytest.approx(alone[0]["ppo/score"], abs=0.05)
    exact = trained(world, tmp_path / "exact", settings | {"precision": {}})
    assert first[0]["ppo/score"] != exact[0]["ppo/score"]  # it was not float32
    saved = weights(tmp_path / "ranks")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


SETS = [
    (family, sharding)
    for sharding in ("ddp", "zero1", "zero2", "zero3", "fsdp2")
    for family in FAMILIES
    if family != "full"
]
SETS.remove(("prompt", "fsdp2"))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("family", "sharding"),
    brief(SETS, ("lora", "zero3"), ("prefix", "zero2"), ("bottleneck", "fsdp2")),
)
def test_an_adapter_is_trained_as_by_one(
    world: World, tmp_path: Path, family: str, sharding: Sharding
) -> None:
    settings = {"adaptation": FAMILIES[family].model_dump()}
    assert_as_one(world, tmp_path, settings, sharding)


MOVES: list[tuple[Sharding, Sharding]] = [
    ("zero2", "none"),
    ("none", "zero3"),
    ("zero3", "fsdp2"),
    ("fsdp2", "ddp"),
    ("zero1", "zero3-offload"),
]


@pytest.mark.distributed
@pytest.mark.parametrize(("first", "then"), brief(MOVES, *MOVES[:2]))
def test_a_run_goes_on_under_another_sharding(
    world: World, tmp_path: Path, first: Sharding, then: Sharding
) -> None:
    unbroken = trained(world, tmp_path / "unbroken", SETTINGS)
    begun = somehow(world, tmp_path / "moved", SETTINGS | {"episodes": 16}, first)
    rest = somehow(world, tmp_path / "moved", SETTINGS, then)
    for step in (*unbroken, *begun, *rest):
        step.pop("ppo/pretraining_gradient_ratio", None)
    assert_same_course(begun, unbroken[:2])
    assert_same_course(rest, unbroken[2:])
    assert_alike(tmp_path / "unbroken", tmp_path / "moved")


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "zero3"])
def test_four_ranks_train_what_one_trains(world: World, tmp_path: Path, sharding: Sharding) -> None:
    assert_as_one(world, tmp_path, SETTINGS, sharding, processes=4)


@pytest.mark.distributed
def test_a_soft_prompt_under_fsdp2_is_refused_in_words(world: World, tmp_path: Path) -> None:
    settings = {"adaptation": FAMILIES["prompt"].model_dump()}
    with pytest.raises(AssertionError, match="family prompt does not work with --sharding fsdp2"):
        run_ranks(trained, world, tmp_path / "two", settings, sharding="fsdp2")


def somehow(
    world: World, out: Path, settings: dict[str, Any], sharding: Sharding
) -> list[dict[str, float]]:
    if sharding == "none":
        return trained(world, out, settings)
    return run_ranks(trained, world, out, settings, sharding=sharding)[0]


def starved(world: World, out: Path) -> str:
    """Train where next to no memory is left; what the refusal says."""
    seen = namedtuple("seen", "available")
    psutil.virtual_memory = lambda: seen(1000)
    try:
        trained(world, out, {})
    except ValueError as error:
        return str(error)
    return "nothing was said"


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("zero3", "fsdp2"), "zero3"))
def test_a_policy_that_does_not_fit_whole_is_refused_before_it_samples(
    world: World, tmp_path: Path, sharding: Sharding
) -> None:
    for message in run_ranks(starved, world, tmp_path, sharding=sharding):
        assert message.startswith("to sample, a rank needs the whole policy")


def with_little_on_one(
    world: World, out: Path, settings: dict[str, Any]
) -> tuple[list[dict[str, float]], list[MicroBatch]]:
    """Train where the second rank has no memory to spare; every rank's micro-batches too."""
    ranks: list[MicroBatch] = []

    def fitting(*given: Any) -> MicroBatch:
        ranks.append(micro_batches.fitting(*given))
        return ranks[-1]

    little = os.environ.get("RANK") == "1"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("stages.ppo.train.fitting", fitting)
        if little:
            patched.setattr(micro_batches, "free_memory", lambda _: 0)
        return trained(world, out, settings), ranks


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("zero3", "fsdp2", "ddp"), "zero3"))
def test_ranks_take_as_many_episodes_as_the_scarcest_has_memory_for(
    world: World, tmp_path: Path, sharding: Sharding
) -> None:
    settings = SETTINGS | {"micro_batch_size": "auto"}
    alone = trained(world, tmp_path / "one", settings)
    (course, ours), (_, others) = run_ranks(
        with_little_on_one, world, tmp_path / "two", settings, sharding=sharding
    )
    assert ours == others == [MicroBatch(1, 1)]
    assert_same_course(course, alone)
    assert_alike(tmp_path / "one", tmp_path / "two")


def watched(world: World, out: Path) -> list[dict[str, float]]:
    """Train beside a second opinion, for which the first rank alone loads a policy."""

    def length(_: Sequence[Prompt], message: Sequence[str], ended: Sequence[bool]) -> list[float]:
        return [len(text) + float(over) for text, over in zip(message, ended, strict=True)]

    config = tiny_config(
        overoptimization={"gold_reward": "judge", "every": 2, "num_prompts": 5}, episodes=16
    )
    judge = WinRate(length, PROMPTS[:5], world[0], config.sampling, 0)
    steps: list[Step] = []
    train(world, out, config, steps.append, gold=GoldReward(judge, PROMPTS[:5]))
    return [dict(step.metrics) for step in steps if "ppo/gold_score" in step.metrics]


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("zero3", "fsdp2"), "zero3"))
def test_a_gold_reward_may_load_a_model_of_its_own(
    world: World, tmp_path: Path, sharding: Sharding
) -> None:
    alone = watched(world, tmp_path / "one")
    ranks = run_ranks(watched, world, tmp_path / "two", sharding=sharding)
    assert [step["ppo/gold_score"] for step in ranks[0]] == [
        step["ppo/gold_score"] for step in alone
    ]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A reward model that is a head on the policy's own transformer."""
    return probe_world(tmp_path_factory.mktemp("probe"))


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("ddp", "zero1", "zero2"), "zero2"))
@pytest.mark.parametrize("family", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_joint_passes_train_as_one_process_does(
    probe: World, tmp_path: Path, family: str, sharding: Sharding
) -> None:
    adaptation: dict[str, Any] = {"family": family} | ({"rank": 2} if family == "lora" else {})
    settings: dict[str, Any] = {
        "adaptation": adaptation,
        "models": {"kind": "joint"},
        "ema_decay": 0.9,
        "pretraining": {"examples_per_episode": 0.75, "tokens_per_example": 8},
    }
    assert_as_one(probe, tmp_path, settings, sharding)


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("zero3", "fsdp2"), "zero3"))
def test_shared_passes_over_divided_weights_are_refused_in_words(
    probe: World, tmp_path: Path, sharding: Sharding
) -> None:
    settings = {"models": {"kind": "joint"}}
    with pytest.raises(AssertionError, match=r"models\.kind is joint, but weights are sharded"):
        run_ranks(trained, probe, tmp_path / "two", settings, sharding=sharding)


TOP: dict[str, Any] = {"adaptation": {"family": "full", "top_layers": 1}, "inner_epochs": 2}
PLAIN = {"cached": {"lower_layers": False}}
FIRST = {"cached": {"first_forward": True}, "minibatch": 8}


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("ddp", "zero1", "zero2", "zero3", "fsdp2"), "zero2"))
def test_the_last_layers_are_trained_as_by_one_that_keeps_nothing(
    world: World, tmp_path: Path, sharding: Sharding
) -> None:
    assert_as_one(world, tmp_path, TOP, sharding, alone=TOP | PLAIN)


@pytest.mark.distributed
@pytest.mark.parametrize("sharding", brief(("ddp", "zero2", "zero3", "fsdp2"), "ddp"))
def test_a_first_pass_that_is_kept_or_cannot_be_trains_as_one_process_does(
    world: World, tmp_path: Path, sharding: Sharding
) -> None:
    ranks = assert_as_one(world, tmp_path, FIRST, sharding, alone={"minibatch": 8})
    if sharding == "ddp":
        assert all(step["ppo/first_ratio_error"] == 0.0 for step in ranks[0])
