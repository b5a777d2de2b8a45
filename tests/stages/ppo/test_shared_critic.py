"""Policy and critic, reference and reward model in one pass: what must not change, and what may."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reward_models.model import RewardModel
from stages.adapters.config import LoRA
from stages.models import adapt, load_policy, load_tokenizer, save_policy
from stages.ppo.config import PPOConfig
from stages.ppo.forward import (
    policy_logits,
    reference_and_scores,
    response_logits,
    response_scores,
    values,
)
from stages.ppo.health import MetricSums
from stages.ppo.models import VALUE_HEAD, ValueHead
from stages.ppo.ppo import add_ppo_gradients, experience
from stages.ppo.rollout import Episodes, lay_out
from stages.ppo.run import PPORun
from tests.stages.ppo.test_resume import PowerCutError, cut_at
from tests.stages.ppo.tiny_ppo import (
    FAMILIES,
    metrics_of,
    outputs,
    probe_world,
    roll_out,
    tiny_config,
    tiny_models,
    tiny_run,
    tiny_world,
    train,
)

World = tuple[Path, Path]
SHARED = ("full", "top_layers", "probe", "lora", "bottleneck", "bitfit")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return probe_world(tmp_path_factory.mktemp("probe"))


def config_of(kind: str, family: str = "full", **changes: Any) -> PPOConfig:
    return tiny_config(models={"kind": kind}, adaptation=FAMILIES[family], **changes)


def with_values(run: PPORun) -> PPORun:
    """The run, where values are no longer 0."""
    generator = torch.Generator().manual_seed(1)
    torch.nn.init.normal_(run.models.critic.head.weight, generator=generator)
    return run


def episodes_of(run: PPORun, sharing: int = 1) -> Episodes:
    prompts = [list(range(2 + n // sharing, 5 + n // sharing)) for n in range(8)]
    generator = torch.Generator().manual_seed(0)
    sampling = run.config.sampling
    return roll_out(run.models, prompts, sampling, generator, sharing=sharing)


@pytest.mark.parametrize(("packed", "sharing"), [(False, 1), (True, 1), (True, 2)])
@pytest.mark.parametrize("family", SHARED)
def test_a_joint_pass_gives_the_outputs_of_reference_and_reward_model_apart(
    world: World, family: str, packed: bool, sharing: int
) -> None:
    run = tiny_run(world, config_of("joint", family))
    layout = lay_out(episodes_of(run, sharing), packed=packed)
    with torch.no_grad():
        logits_NV, score_E = reference_and_scores(run.models, layout)
        apart_NV = response_logits(run.models.reference, layout)
        apart_E = response_scores(run.models.reward, layout)
    torch.testing.assert_close(logits_NV, apart_NV, rtol=0, atol=1e-6)
    torch.testing.assert_close(score_E, apart_E, rtol=0, atol=1e-6)
    assert apart_E.std() > 0.01  # scores that differ


def gradients(world: World, config: PPOConfig, like: PPORun | None = None) -> dict[str, Tensor]:
    """The policy after the first minibatch of the experience of `like`."""
    run = with_values(tiny_run(world, config))
    source = run if like is None else like
    rollout = outputs(source.models, episodes_of(source))
    data, _ = experience(rollout, config, 0.05)
    add_ppo_gradients(run, data, torch.arange(4), MetricSums(), first=True)
    gradients_of = run.policy.parameters.items()
    return {name: p.grad.clone() for name, p in gradients_of if p.grad is not None}


@pytest.mark.parametrize("family", SHARED)
def test_without_the_value_losss_pull_the_policys_gradients_are_those_of_separate_models(
    world: World, family: str
) -> None:
    separate = config_of("separate", family)
    none = {"kind": "joint", "value_coefficient": 0.0}
    shared = separate.model_copy(update={"models": tiny_config(models=none).models})
    expected = gradients(world, separate)
    gradients_of = gradients(world, shared, like=with_values(tiny_run(world, separate)))
    assert gradients_of.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients_of[name], gradient, rtol=1e-5, atol=1e-7)


def test_one_backward_pass_gives_the_gradients_of_policy_loss_plus_coefficient_times_value_loss(
    world: World,
) -> None:
    gradients_of: list[dict[str, Tensor]] = []
    for coefficient in (0.0, 0.3):
        config = tiny_config(models={"kind": "joint", "value_coefficient": coefficient})
        gradients_of.append(gradients(world, config))
    run = with_values(tiny_run(world, config))
    rollout = outputs(run.models, episodes_of(run))
    data, _ = experience(rollout, config, 0.05)
    batch = data.take(torch.arange(4))
    mask_BT = batch.episodes.response_BT
    value_N = _values(run, batch.episodes)
    # Before the first step the clipped and the plain error are one.
    loss = 0.5 * (value_N - batch.return_BT[mask_BT]).square().mean()
    run.models.policy.zero_grad()
    (0.3 * loss).backward()
    for name, p in run.policy.parameters.items():
        pull = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(
            gradients_of[1][name] - gradients_of[0][name], pull, rtol=1e-3, atol=1e-6
        )


def _values(run: PPORun, episodes: Episodes) -> Tensor:
    """value_N by transformers' own hidden states, row by row without padding."""
    head, values = run.models.critic, []
    assert isinstance(head, ValueHead)
    for ids_L, mask_L, response_T in zip(
        episodes.ids_BL, episodes.mask_BL, episodes.response_BT, strict=True
    ):
        output = run.models.policy(input_ids=ids_L[mask_L][None], output_hidden_states=True)
        state_LD = output.hidden_states[-1][0]
        count = int(response_T.sum())
        values.append(head(state_LD[-count - 1 : -1]))
    return torch.cat(values)


def test_values_come_from_where_the_tokens_are_predicted(world: World) -> None:
    run = with_values(tiny_run(world, config_of("shared-critic")))
    episodes = episodes_of(run)
    layout = lay_out(episodes)
    _, state_ND = policy_logits(run.models, layout, run.models.policy)
    value_N = values(run.models, layout, state_ND)
    torch.testing.assert_close(value_N, _values(run, episodes), rtol=0, atol=1e-5)
    assert value_N.std() > 0.01


@pytest.mark.parametrize("kind", ["separate", "shared-critic", "joint"])
def test_values_of_a_head_alone_start_at_zero(world: World, kind: str) -> None:
    run = tiny_run(world, config_of(kind))
    data = outputs(run.models, episodes_of(run))
    assert data.value_BT.eq(0.0).all()
    assert data.score_B.abs().min() > 0.0  # the reward model keeps its head


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("shared-critic", "full"),
        ("joint", "lora"),
        *(
            pytest.param(kind, family, marks=pytest.mark.slow)
            for kind, family in [
                ("joint", "full"),
                ("shared-critic", "lora"),
                ("joint", "bottleneck"),
                ("joint", "bitfit"),
            ]
        ),
    ],
)
def test_training_moves_head_and_policy_and_starts_at_a_ratio_of_one(
    world: World, tmp_path: Path, kind: str, family: str
) -> None:
    config = config_of(kind, family)
    before = tiny_models(world, config).critic.state_dict()
    rows = metrics_of(world, tmp_path / "out", config)
    assert all(row["ppo/first_ratio_error"] < 1e-5 for row in rows)
    assert rows[0]["ppo/kl_nats"] == 0.0
    assert rows[-1]["ppo/kl_nats"] != 0.0
    after = load_file(tmp_path / "out/critic" / VALUE_HEAD)
    assert after.keys() == before.keys()
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_an_interrupted_joint_run_with_all_its_parts_ends_bit_equal(
    world: World, tmp_path: Path
) -> None:
    parts: dict[str, Any] = {
        "pretraining": {"coefficient": 1.0, "examples_per_episode": 1.0, "tokens_per_example": 8},
        "validation": {"every": 2},
        "ema_decay": 0.9,
        "responses_per_prompt": 2,
        "value_clip": None,
    }
    config = config_of("joint", "lora", **parts)
    whole = metrics_of(world, tmp_path / "whole", config)
    with pytest.raises(PowerCutError):
        train(world, tmp_path / "broken", config, cut_at(4))
    rest = metrics_of(world, tmp_path / "broken", config)
    assert len(rest) == 2
    for gradients_of, expected in zip(rest, whole[2:], strict=True):
        for name in expected:
            assert name.startswith("time/") or gradients_of[name] == expected[name], name
    for part in ("model/adapter_model.safetensors", f"critic/{VALUE_HEAD}"):
        left, right = (load_file(tmp_path / run / part) for run in ("whole", "broken"))
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_joint_refuses_a_reward_model_that_is_no_probe_on_the_policy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the reward model trained more than its head; expected"):
        tiny_models(tiny_world(tmp_path), config_of("joint"))


def test_joint_refuses_a_policy_that_moved_after_the_probe_was_trained(tmp_path: Path) -> None:
    policy, reward = probe_world(tmp_path)
    tuned, tokenizer = adapt(load_policy(policy), LoRA(rank=2)), load_tokenizer(policy)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    save_policy(tuned, tokenizer, tmp_path / "tuned")
    with pytest.raises(ValueError, match="whose hidden states are not those of"):
        tiny_models((tmp_path / "tuned", reward), config_of("joint", "lora"))


def test_joint_refuses_a_reward_model_that_pools_the_mean(world: World, tmp_path: Path) -> None:
    reward = tiny_models(world, config_of("separate")).reward
    assert isinstance(reward, RewardModel)
    reward.card = replace(reward.card, pooling="mean")
    reward.save(tmp_path / "mean")
    with pytest.raises(ValueError, match="pools by mean; expected"):
        tiny_models((world[0], tmp_path / "mean"), config_of("joint"))
