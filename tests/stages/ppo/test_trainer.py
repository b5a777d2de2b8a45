"""A tiny PPO run from its folders to its result."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MistralConfig, MistralForCausalLM

from reward_models.model import RewardModel
from stages.models import load_policy, load_tokenizer
from stages.ppo.forward_checks import obstacle_to_packing
from stages.ppo.health import UnhealthyRunError
from stages.ppo.train import train_ppo
from stages.progress import silent
from tests.stages.ppo.tiny_ppo import (
    PROMPTS,
    TEXTS,
    metrics_of,
    texts_file,
    tiny_config,
    tiny_models,
    tiny_world,
    train,
)

PTX = {"coefficient": 1.0, "examples_per_episode": 1.0, "tokens_per_example": 8}
REPORTED = {
    "advantage_mean",
    "advantage_variance",
    "approx_kl",
    "critic_gradient_norm",
    "distinct_responses",
    "entropy_nats_per_token",
    "eos_rate",
    "explained_variance",
    "first_ratio_error",
    "gradient_norm",
    "kl_coefficient",
    "kl_nats",
    "kl_nats_per_token",
    "learning_rate",
    "policy_clip_fraction",
    "policy_loss",
    "ratio",
    "repetition",
    "response_tokens",
    "reward",
    "score",
    "return_mean",
    "return_variance",
    "value_clip_fraction",
    "value_loss",
    "value_mean",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def weights(out: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return load_file(out / part / "model.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_a_run_shows_what_a_person_needs_and_starts_where_it_must(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    steps = metrics_of(world, tmp_path, tiny_config())
    assert len(steps) == 4
    for step in steps:
        assert {f"ppo/{name}" for name in REPORTED} <= step.keys()
        assert {"time/rollout_s", "time/scoring_s", "time/update_s"} <= step.keys()
        assert step["ppo/first_ratio_error"] == 0.0  # read in the same passes
    assert steps[0]["ppo/kl_nats"] == 0.0
    assert steps[-1]["ppo/kl_k3_nats_per_token"] > 0.0


def test_the_result_loads_as_policy_and_critic(world: tuple[Path, Path], tmp_path: Path) -> None:
    train(world, tmp_path, tiny_config())
    assert load_tokenizer(tmp_path / "model").eos_token == "<eos>"
    assert furthest(weights(tmp_path), load_file(world[0] / "model.safetensors")) > 1e-4
    load_policy(tmp_path / "model")
    critic, reward = RewardModel.load(tmp_path / "critic"), RewardModel.load(world[1])
    assert critic.bias.item() != reward.bias.item()


def test_ppo_raises_the_score(world: tuple[Path, Path], tmp_path: Path) -> None:
    config = tiny_config(
        episodes=32 * 25,
        episodes_per_rollout=32,
        minibatch=16,
        micro_batch_size="auto",
        learning_rate=4e-3,
        kl={"kind": "fixed", "coefficient": 0.01},
        ema_decay=None,
    )
    scores = [step["ppo/score"] for step in metrics_of(world, tmp_path, config)]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.3


def test_two_runs_of_one_seed_are_bit_equal_and_another_seed_is_not(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(world, tmp_path / name, tiny_config(pretraining=PTX), seed=seed)
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert furthest(weights(tmp_path / "a"), weights(tmp_path / "c")) > 0


def test_the_micro_batch_changes_nothing(world: tuple[Path, Path], tmp_path: Path) -> None:
    for size in (1, 4):
        config = tiny_config(micro_batch_size=size, pretraining=PTX, episodes=16)
        train(world, tmp_path / str(size), config)
    assert furthest(weights(tmp_path / "1"), weights(tmp_path / "4")) < 2e-5


def test_computing_a_prompt_once_for_its_responses_changes_nothing(
    world: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_config(responses_per_prompt=4, minibatch=8, micro_batch_size=4, pretraining=PTX)
    steps = metrics_of(world, tmp_path / "together", config)
    assert steps[0]["ppo/kl_nats"] == 0.0
    assert max(step["ppo/first_ratio_error"] for step in steps) == 0.0
    monkeypatch.setattr(
        "stages.ppo.forward_checks.obstacle_to_packing", lambda *_: "a test says so"
    )
    train(world, tmp_path / "apart", config)
    assert "computed in a padded row of its own: a test says so" in caplog.text
    assert furthest(weights(tmp_path / "together"), weights(tmp_path / "apart")) < 2e-5


def test_a_model_whose_window_is_too_short_for_a_text_is_found_out(
    world: tuple[Path, Path],
) -> None:
    models = tiny_models(world, tiny_config())
    prompt = [5, 6, 7, 8, 9, 10]
    assert obstacle_to_packing(models, prompt, 4, 3) is None
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 25}
    config = MistralConfig(sliding_window=4, num_key_value_heads=2, intermediate_size=32, **shape)
    windowed = dataclasses.replace(models, policy=MistralForCausalLM(config).eval())
    obstacle = obstacle_to_packing(windowed, prompt, 4, 3)
    assert obstacle is not None
    assert "differs" in obstacle


def test_batches_that_would_tear_a_prompts_responses_apart_are_refused() -> None:
    with pytest.raises(ValueError, match=r"micro_batch_size \(2\) must be a multiple of"):
        tiny_config(responses_per_prompt=4)


def test_the_reference_and_the_reward_model_stay_as_they_are(world: tuple[Path, Path]) -> None:
    models = tiny_models(world, tiny_config())
    assert not any(p.requires_grad for p in models.reference.parameters())
    assert not any(p.requires_grad for p in models.reward.parameters())
    policy, reference = models.policy.parameters(), models.reference.parameters()
    for p, r in zip(policy, reference, strict=True):
        assert p.data_ptr() != r.data_ptr()
        assert torch.equal(p, r)


def test_the_critic_starts_as_the_reward_model(world: tuple[Path, Path]) -> None:
    models = tiny_models(world, tiny_config())
    ids_BL, mask_BL = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool)
    positions_BL = torch.arange(3)[None]
    value_BL = models.critic.values(ids_BL, mask_BL, positions_BL)
    assert torch.equal(value_BL[:, -1], models.reward(ids_BL, mask_BL, positions_BL))


def test_ptx_holds_the_pretraining_loss_down(world: tuple[Path, Path], tmp_path: Path) -> None:
    losses = {}
    for coefficient in (0.0, 5.0):
        mix = PTX | {"coefficient": coefficient}
        config = tiny_config(episodes=64, learning_rate=3e-3, pretraining=mix)
        steps = metrics_of(world, tmp_path / str(coefficient), config)
        losses[coefficient] = steps[-1]["ppo/pretraining_loss_nats_per_token"]
        assert (steps[0]["ppo/pretraining_gradient_ratio"] > 0) == (coefficient > 0)
    assert losses[5.0] < losses[0.0] - 0.2


def test_the_moving_average_is_the_result(world: tuple[Path, Path], tmp_path: Path) -> None:
    for decay in (None, 0.5, 1.0):
        train(world, tmp_path / str(decay), tiny_config(ema_decay=decay))
    start = load_file(world[0] / "model.safetensors")
    last = weights(tmp_path / "None")
    assert furthest(weights(tmp_path / "1.0"), start) == 0.0
    assert 0 < furthest(weights(tmp_path / "0.5"), last) < furthest(start, last)


def test_lora_starts_at_the_reference_and_saves_the_adapter_alone(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    config = tiny_config(adaptation={"family": "lora", "rank": 2})
    steps = metrics_of(world, tmp_path, config)
    assert steps[0]["ppo/kl_nats"] == 0.0
    assert steps[0]["ppo/gradient_norm"] > 0
    assert not (tmp_path / "model" / "model.safetensors").exists()
    load_policy(tmp_path / "model")


def test_the_reference_of_an_adapter_is_the_adapter_not_the_base(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    config = tiny_config(adaptation={"family": "lora", "rank": 2}, learning_rate=0.01)
    train(world, tmp_path / "first", config)
    models = tiny_models((tmp_path / "first" / "model", world[1]), config)
    ids_BL = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        reference_BLV = models.reference(ids_BL).logits
        assert torch.equal(reference_BLV, models.policy(ids_BL).logits)
        assert not torch.allclose(reference_BLV, load_policy(world[0])(ids_BL).logits)


def test_an_adaptive_controller_moves_the_coefficient(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    kl = {"kind": "adaptive", "coefficient": 0.1, "target_nats": 5.0, "horizon_episodes": 80}
    steps = metrics_of(world, tmp_path, tiny_config(kl=kl))
    coefficients = [step["ppo/kl_coefficient"] for step in steps]
    assert coefficients[:2] == pytest.approx([0.1, 0.1 * (1 - 0.2 * 8 / 80)])


def test_the_best_policy_on_validation_prompts_is_the_result(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    config = tiny_config(validation={"every": 1}, ema_decay=None, learning_rate=0.02)
    steps = metrics_of(world, tmp_path / "chosen", config)
    scores = [step["ppo/validation_score"] for step in steps]
    best = scores.index(max(scores)) + 1
    until = tiny_config(episodes=8 * best, ema_decay=None, learning_rate=0.02)
    train(world, tmp_path / "until", until)
    assert_equal(weights(tmp_path / "chosen"), weights(tmp_path / "until"))


def test_a_run_ends_when_its_kl_budget_is_spent(world: tuple[Path, Path], tmp_path: Path) -> None:
    rule = {"every": 1, "kl_budget_nats": 0.05}
    config = tiny_config(validation=rule, ema_decay=None, learning_rate=0.02, episodes=800)
    steps = metrics_of(world, tmp_path, config)
    assert len(steps) < 100
    assert steps[-1]["ppo/validation_kl_nats"] > 0.05
    assert all(step["ppo/validation_kl_nats"] <= 0.05 for step in steps[:-1])
    again = metrics_of(world, tmp_path, config)
    assert again == []  # the end is remembered


def test_a_reward_model_of_another_tokenizer_is_refused(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    card = world[1] / "reward.json"
    row = json.loads(card.read_text())
    other = tmp_path / "reward"
    other.mkdir()
    for path in world[1].iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "reward.json").write_text(json.dumps(row | {"tokenizer": "0123456789abcdef"}))
    with pytest.raises(ValueError, match=r"0123456789ab.*must read what the policy writes"):
        train((world[0], other), tmp_path / "out", tiny_config())


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"pretraining": PTX}, {}, "pretraining is set, but there is no input"),
        ({}, {"pretraining": TEXTS}, "pretraining is not set, so it would have no effect"),
        ({"validation": {}}, {}, "validation is set, but there is no input"),
        ({}, {"prompts": []}, "there is no prompt to train on"),
        ({"pretraining": PTX}, {"pretraining": ["w1"]}, "has 2 tokens, expected at least"),
        ({"sampling": {"max_new_tokens": 64}}, {}, "has 64 positions"),
    ],
)
def test_input_that_does_not_fit_is_refused(
    world: tuple[Path, Path],
    tmp_path: Path,
    changes: dict[str, Any],
    given: dict[str, Any],
    message: str,
) -> None:
    inputs: dict[str, Any] = {"prompts": PROMPTS, "pretraining": None} | given
    if inputs["pretraining"] is not None:
        inputs["pretraining"] = texts_file(tmp_path, inputs["pretraining"])
    with pytest.raises(ValueError, match=message):
        train_ppo(
            tiny_config(**changes),
            policy=world[0],
            reward_model=world[1],
            out=tmp_path,
            seed=0,
            report=silent,
            **inputs,
        )


def test_dropout_in_the_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"adaptation.dropout \(0.1\) must be 0 in PPO"):
        tiny_config(adaptation={"family": "lora", "dropout": 0.1})


def test_a_guard_stops_the_run_or_warns(
    world: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strict = {"action": "stop", "min_eos_rate": 1.0}
    with pytest.raises(UnhealthyRunError, match=r"iteration 1: ppo/eos_rate .*missing_eos_score"):
        train(world, tmp_path / "stop", tiny_config(health=strict))
    train(world, tmp_path / "warn", tiny_config(health=strict | {"action": "warn"}))
    assert "missing_eos_score" in caplog.text
