"""PPO's speed-ups change no minibatch: trained weights are the same with and without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from stages.models import load_policy
from tests.reward_models.tiny import tiny_reward, tiny_tokenizer
from tests.stages.ppo.tiny_ppo import tiny_config, train

World = tuple[Path, Path]
FAST: dict[str, Any] = {"packed": True, "cached": {"lower_layers": True}}
SLOW: dict[str, Any] = {"packed": False, "cached": {"lower_layers": False}}
SPEED_UPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "packed": ({"packed": True}, {"packed": False}),
    "packed, by memory": (
        {"packed": True, "micro_batch_size": "auto"},
        {"packed": False, "micro_batch_size": 4},
    ),
    "lower layers kept": (
        FAST | {"adaptation": {"family": "full", "top_layers": 1}},
        SLOW | {"adaptation": {"family": "full", "top_layers": 1}},
    ),
    "first pass kept": (
        {"packed": True, "cached": {"first_forward": True}, "minibatch": 16},
        {"packed": False, "cached": {"first_forward": False}, "minibatch": 16},
    ),
}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    if request.param == "gpt2":
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **sizes)
        model: Any = GPT2LMHeadModel(config)
    else:
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **shape, **sizes))
    model.save_pretrained(folder / "sft")
    tokenizer.save_pretrained(folder / "sft")
    return folder / "sft", tiny_reward(folder / "sft", folder / "reward", scale=4.0)


def trained(world: World, out: Path, responses: int, changes: dict[str, Any]) -> torch.Tensor:
    settings: dict[str, Any] = {
        "episodes": 32,
        "episodes_per_rollout": 16,
        "minibatch": 8,
        "micro_batch_size": 4,
        "inner_epochs": 2,
        "responses_per_prompt": responses,
        "ema_decay": None,
    }
    train(world, out, tiny_config(**settings | changes))
    policy = load_policy(out / "model")
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


@pytest.mark.parametrize("responses", [1, 4])
@pytest.mark.parametrize("kind", SPEED_UPS)
def test_a_speed_up_trains_the_weights_that_the_plain_way_trains(
    world: World, tmp_path: Path, kind: str, responses: int
) -> None:
    fast, plain = (
        trained(world, tmp_path / name, responses, changes)
        for name, changes in zip(("fast", "plain"), SPEED_UPS[kind], strict=True)
    )
    start = torch.cat([p.detach().flatten() for p in load_policy(world[0]).parameters()])
    assert (plain - start).abs().max() > 1e-3
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-6)


def test_a_model_that_cannot_be_packed_takes_the_same_minibatches(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = trained(world, tmp_path / "packed", 4, {})
    monkeypatch.setattr("stages.ppo.forward_checks.obstacle_to_packing", lambda *_: "it is told so")
    padded = trained(world, tmp_path / "padded", 4, {})
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-6)
