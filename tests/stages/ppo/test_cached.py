"""Outputs of a rollout that are cached for its update change no number, and save passes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from reward_models.model import RewardModel
from stages.adapters.backbone import layers_of
from stages.adapters.cached_layers import CachedLayers
from stages.ppo import ppo
from stages.ppo.config import PPOConfig
from stages.ppo.forward import evaluate
from stages.ppo.health import MetricSums
from stages.ppo.models import Models
from stages.ppo.ppo import add_ppo_gradients, experience, iterate
from stages.ppo.rollout import Episodes, Experience
from stages.ppo.run import PPORun
from tests.stages.ppo.test_resume import PowerCutError, cut_at
from tests.stages.ppo.tiny_ppo import (
    metrics_of,
    outputs,
    probe_world,
    roll_out,
    tiny_config,
    tiny_run,
    tiny_world,
    train,
)

World = tuple[Path, Path]
FAMILIES: dict[str, dict[str, Any]] = {
    "full": {"family": "full"},
    "top_layers": {"family": "full", "top_layers": 1},
    "lora": {"family": "lora", "rank": 2},
    "lora-above": {"family": "lora", "rank": 2, "target_modules": ["layers.1.mlp.up_proj"]},
    "probe": {"family": "probe"},
    "prefix": {"family": "prefix", "length": 3},
    "prompt": {"family": "prompt", "length": 3},
}
PARTS: dict[str, Any] = {
    "pretraining": {"coefficient": 1.0, "examples_per_episode": 1.0, "tokens_per_example": 8},
    "validation": {"every": 2},
    "ema_decay": 0.9,
    "inner_epochs": 2,
    "responses_per_prompt": 2,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def one_backbone(tmp_path_factory: pytest.TempPathFactory) -> World:
    return probe_world(tmp_path_factory.mktemp("one-trunk"))


def config_of(family: str, cached: dict[str, bool], **changes: Any) -> PPOConfig:
    return tiny_config(adaptation=FAMILIES[family], cached=cached, **changes)


def weights(out: Path) -> dict[str, torch.Tensor]:
    files = sorted(
        (*(out / "model").glob("*.safetensors"), *(out / "critic").glob("*.safetensors"))
    )
    return {f"{f.parent.name}/{k}": x for f in files for k, x in load_file(f).items()}


def assert_alike(one: Path, other: Path, *, exact: bool = False) -> None:
    ours, others = weights(one), weights(other)
    assert ours.keys() == others.keys()
    for name, weight in ours.items():
        tolerance = 0.0 if exact else 1e-5
        torch.testing.assert_close(weight, others[name], rtol=0, atol=tolerance, msg=name)


def assert_same_course(
    ours: list[dict[str, float]], others: list[dict[str, float]], *, exact: bool = False
) -> None:
    assert len(ours) == len(others) > 1
    for step, other in zip(ours, others, strict=True):
        assert step.keys() == other.keys()
        for name, value in other.items():
            expected = value if exact else pytest.approx(value, rel=1e-4, abs=1e-5)
            assert name.startswith("time/") or step[name] == expected, name


class Passes:
    """The number of calls of each layer of the tiny models."""

    def __init__(self, models: Models) -> None:
        self.seen: dict[str, list[int]] = {}
        for name, role in {
            "policy": models.policy,
            "reference": models.reference,
            "critic": models.critic,
            "reward": models.reward,
        }.items():
            self.seen[name] = [0, 0]
            for number, layer in enumerate(layers_of(role_backbone(role))):
                first = next(iter(layer.children()))
                first.register_forward_hook(self._counter(name, number))

    def _counter(self, name: str, number: int) -> Any:
        def count(*_: object) -> None:
            self.seen[name][number] += 1

        return count


def role_backbone(role: nn.Module) -> PreTrainedModel:
    """The model or what carries a reward model's head."""
    gradients = role.backbone if isinstance(role, RewardModel) else role
    assert isinstance(gradients, PreTrainedModel)
    return gradients


WHOLE = {"minibatch": 8}  # one minibatch is the rollout


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("full", {}),
        ("lora", PARTS),
        pytest.param("full", PARTS | {"micro_batch_size": "auto"}, marks=pytest.mark.slow),
        pytest.param("prefix", PARTS, marks=pytest.mark.slow),
        pytest.param("prompt", {"inner_epochs": 2}, marks=pytest.mark.slow),
        pytest.param("probe", PARTS, marks=pytest.mark.slow),
    ],
)
def test_going_back_through_the_first_pass_trains_what_another_pass_would(
    world: World, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    again = config_of(family, {"first_forward": False}, **WHOLE | changes)
    cached = config_of(family, {"first_forward": True}, **WHOLE | changes)
    ours = metrics_of(world, tmp_path / "kept", cached)
    assert_same_course(ours, metrics_of(world, tmp_path / "again", again))
    assert_alike(tmp_path / "kept", tmp_path / "again")
    assert all(row["ppo/first_ratio_error"] == 0.0 for row in ours)


def test_where_passes_are_cut_alike_the_gradients_are_the_same_bits(world: World) -> None:
    gradients = []
    for keep in (True, False):
        run = tiny_run(world, config_of("full", {"first_forward": keep}, **WHOLE))
        rollout, forwards = evaluate(
            run.models, rolled(run), temperature=1.0, batch_size=2, keep_graphs=keep
        )
        data, _ = experience(rollout, run.config, 0.05)
        assert len(forwards) == (4 if keep else 0)
        add_ppo_gradients(run, data, torch.arange(8), MetricSums(), forwards, first=True)
        gradients.append([*run.policy.gradients(), *run.critic.gradients()])
    assert all(torch.equal(cached, again) for cached, again in zip(*gradients, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])


@pytest.mark.parametrize("kind", ["shared-critic", "joint"])
def test_a_value_heads_first_pass_is_kept_too(
    one_backbone: World, tmp_path: Path, kind: str
) -> None:
    courses = []
    for name, first_pass in (("kept", True), ("again", False)):
        cached, changes = {"first_forward": first_pass}, WHOLE | {"models": {"kind": kind}}
        courses.append(
            metrics_of(one_backbone, tmp_path / name, config_of("lora", cached, **changes))
        )
    assert_same_course(*courses)
    assert_alike(tmp_path / "kept", tmp_path / "again")


def test_the_first_epoch_makes_no_pass_of_its_own(world: World) -> None:
    calls = []
    for first_pass in (False, True):
        run = tiny_run(world, config_of("full", {"first_forward": first_pass}, **WHOLE))
        passes = Passes(run.models)
        iterated(run)
        calls.append(passes.seen)
    again, cached = calls
    micro_batches = 4
    assert again["critic"][0] == 2 * micro_batches
    assert cached["critic"][0] == micro_batches
    assert again["policy"][0] - cached["policy"][0] == micro_batches
    assert again["reference"] == cached["reference"]


def test_several_minibatches_are_read_anew_and_that_is_said(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, first_pass in (("on", True), ("off", False)):
        train(world, tmp_path / name, config_of("full", {"first_forward": first_pass}))
        warned = (
            "cached.first_forward has no effect: it takes one minibatch a rollout" in caplog.text
        )
        assert warned is first_pass
        caplog.clear()
    assert_alike(tmp_path / "on", tmp_path / "off", exact=True)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("top_layers", {"inner_epochs": 2}),
        ("top_layers", PARTS | WHOLE),
        ("lora-above", PARTS),
        pytest.param("probe", PARTS, marks=pytest.mark.slow),
        pytest.param("prefix", {}, marks=pytest.mark.slow),
        pytest.param("prompt", {}, marks=pytest.mark.slow),
    ],
)
def test_lower_layers_computed_once_train_what_computing_them_anew_does(
    world: World, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    once = config_of(family, {"lower_layers": True, "first_forward": True}, **changes)
    anew = config_of(family, {"lower_layers": False}, **changes)
    ours = metrics_of(world, tmp_path / "once", once)
    assert_same_course(ours, metrics_of(world, tmp_path / "anew", anew))
    assert_alike(tmp_path / "once", tmp_path / "anew")
    assert all(row["ppo/first_ratio_error"] < 1e-5 for row in ours)


def test_the_layers_below_are_run_for_no_model_but_the_first(world: World) -> None:
    config = config_of("top_layers", {"lower_layers": True}, inner_epochs=3)
    run = tiny_run(world, config)
    assert run.models.lower.num_models == 4
    passes = Passes(run.models)
    iterated(run)
    for role in ("critic", "reference", "reward"):
        below, above = passes.seen[role]
        assert below == 0
        assert above > 0
    sampled_and_read = passes.seen["policy"][0]
    trained = config.inner_epochs * config.episodes_per_rollout // 2  # micro-batches of two
    assert passes.seen["policy"][1] == sampled_and_read + trained


def test_states_are_cached_as_vectors_of_tokens_and_freed_with_the_rollout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(world, config_of("top_layers", {"lower_layers": True}))
    seen: list[int] = []
    update = ppo.update

    def watched(run: PPORun, data: Experience, *given: Any) -> None:
        seen.append(run.models.lower.num_bytes)
        seen.append(int(data.episodes.mask_BL.sum()))
        update(run, data, *given)

    monkeypatch.setattr(ppo, "update", watched)
    iterated(run)
    held, tokens = seen
    assert 0 < held <= 4 * tokens * run.models.policy.config.hidden_size
    assert run.models.lower.num_bytes == 0


def test_what_may_move_or_changes_what_goes_in_is_never_left_out(world: World) -> None:
    for family in ("full", "lora", "prefix", "prompt"):
        assert (
            tiny_run(world, config_of(family, {"lower_layers": True})).models.lower.num_models == 0
        )
    off = tiny_run(world, config_of("top_layers", {"lower_layers": False}))
    assert off.models.lower.num_models == 0


def test_a_role_on_other_weights_reads_its_own(world: World) -> None:
    run = tiny_run(world, config_of("top_layers", {"lower_layers": True}))
    models = run.models
    with torch.no_grad():
        for layer in list(layers_of(role_backbone(models.reward)))[:1]:
            for parameter in layer.parameters():
                parameter.set_(parameter + 0.1)  # type: ignore[call-overload]
    apart = replace(models, lower=CachedLayers((models.policy, models.reference, models.reward)))
    plain = replace(models, lower=CachedLayers())
    episodes = rolled(run)
    read, expected = (outputs(one, episodes) for one in (apart, plain))
    assert torch.equal(read.score_B, expected.score_B)
    assert torch.equal(read.reference_BT, expected.reference_BT)


def test_an_interrupted_run_that_keeps_everything_ends_bit_equal(
    world: World, tmp_path: Path
) -> None:
    cached = {"first_forward": True, "lower_layers": True}
    config = config_of("top_layers", cached, **PARTS | WHOLE)
    whole = metrics_of(world, tmp_path / "whole", config)
    with pytest.raises(PowerCutError):
        train(world, tmp_path / "broken", config, cut_at(4))
    rest = metrics_of(world, tmp_path / "broken", config)
    assert_same_course(rest, whole[2:], exact=True)
    assert_alike(tmp_path / "whole", tmp_path / "broken", exact=True)


def iterated(run: PPORun) -> None:
    prompts = [list(range(2 + n, 5 + n + n % 3)) for n in range(8)]
    iterate(run, prompts, 0)


def rolled(run: PPORun) -> Episodes:
    prompts = [list(range(2 + n, 5 + n + n % 3)) for n in range(8)]
    generator = torch.Generator().manual_seed(0)
    return roll_out(run.models, prompts, run.config.sampling, generator)
