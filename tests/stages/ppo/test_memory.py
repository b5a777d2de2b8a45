"""Settings that save memory in PPO change no number, and save what they say."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stages.chunked_logprobs import in_place_of_logits, logprobs_and_entropy, tokens_at_once
from stages.distributed.activation_checkpointing import checkpoint_activations
from stages.distributed.memory import peak_bytes
from stages.distributed.optimizers import state_bytes
from stages.ppo import forward, forward_checks
from tests.stages.ppo.test_cached import (
    FAMILIES,
    PARTS,
    World,
    assert_alike,
    assert_same_course,
)
from tests.stages.ppo.test_resume import PowerCutError, cut_at
from tests.stages.ppo.tiny_ppo import metrics_of, probe_world, tiny_config, tiny_world, train


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world(tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="module")
def one_backbone(tmp_path_factory: pytest.TempPathFactory) -> World:
    return probe_world(tmp_path_factory.mktemp("one-backbone"))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("full", {"minibatch": 8, "cached": {"first_forward": True}}),
        pytest.param("top_layers", PARTS, marks=pytest.mark.slow),
        ("lora", {"models": {"kind": "shared-critic"}}),
        pytest.param("lora-above", {"models": {"kind": "joint"}}, marks=pytest.mark.slow),
        ("prompt", {"minibatch": 8, "cached": {"first_forward": True}}),
        pytest.param("bottleneck", {"packed": False}, marks=pytest.mark.slow),
    ],
)
def test_checkpointed_activations_change_no_bit_of_a_run(
    one_backbone: World, world: World, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    start = one_backbone if changes.get("models") else world
    courses = []
    for checkpointed in (False, True):
        config = tiny_config(
            adaptation=FAMILIES[family], activation_checkpointing=checkpointed, **changes
        )
        courses.append(metrics_of(start, tmp_path / str(checkpointed), config))
    assert_same_course(*courses, exact=True)
    assert_alike(tmp_path / "False", tmp_path / "True", exact=True)


def test_a_run_with_8_bit_moments_resumes_bit_equal(world: World, tmp_path: Path) -> None:
    config = tiny_config(optimizer="adamw_8bit", checkpoint_every=1)
    whole = metrics_of(world, tmp_path / "whole", config)
    with pytest.raises(PowerCutError):
        train(world, tmp_path / "broken", config, cut_at(3))
    assert_same_course(metrics_of(world, tmp_path / "broken", config), whole[2:], exact=True)
    assert_alike(tmp_path / "broken", tmp_path / "whole", exact=True)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("full", PARTS | {"models": {"kind": "shared-critic"}}),
        ("lora-above", {"minibatch": 8, "cached": {"first_forward": True}, "packed": False}),
    ],
)
def test_a_run_with_logits_in_chunks_is_the_same(
    one_backbone: World,
    tmp_path: Path,
    family: str,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(adaptation=FAMILIES[family], **changes)
    at_once = metrics_of(one_backbone, tmp_path / "at-once", config)
    chunks: list[int] = []

    def compute(*given: Any, **settings: Any) -> Any:
        chunks.append(settings["chunk"])
        return logprobs_and_entropy(*given, **settings)

    monkeypatch.setattr(forward_checks, "tokens_at_once", lambda _: 3)
    monkeypatch.setattr(forward, "logprobs_and_entropy", compute)
    assert_same_course(metrics_of(one_backbone, tmp_path / "in-chunks", config), at_once)
    assert_alike(tmp_path / "in-chunks", tmp_path / "at-once")
    assert set(chunks) == {3}


def test_offloading_changes_no_bit_of_a_run_and_needs_full_fine_tuning(
    world: World, tmp_path: Path
) -> None:
    courses = []
    for offload in (False, True):
        config = tiny_config(models={"kind": "separate", "offload": offload}, ema_decay=0.9)
        courses.append(metrics_of(world, tmp_path / str(offload), config))
    assert_same_course(*courses, exact=True)
    assert_alike(tmp_path / "False", tmp_path / "True", exact=True)
    with pytest.raises(ValueError, match=r"models.offload is true but adaptation.family is lora"):
        tiny_config(models={"kind": "separate", "offload": True}, adaptation=FAMILIES["lora"])


LLAMA_1B = LlamaConfig(
    **{"vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 16},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
    **{"intermediate_size": 8192, "tie_word_embeddings": True, "attn_implementation": "sdpa"},
)
TOKENS = 250 + 256  # of a prompt and its response


@cache
def pass_bytes(*, checkpointed: bool) -> tuple[LlamaForCausalLM, int]:
    """A model without content, and the bytes at the peak of a pass beside weights and gradients."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LLAMA_1B).bfloat16().eval()
        if checkpointed:
            checkpoint_activations(model)
        inputs = {
            "input_ids": torch.zeros(1, TOKENS, dtype=torch.long),
            "position_ids": torch.arange(TOKENS)[None],
            "attention_mask": torch.zeros(1, 1, 1, 1),  # passed on as it is
        }
        summary = partial(
            logprobs_and_entropy,
            token_N=torch.zeros(256, dtype=torch.long),
            temperature=1.0,
            chunk=tokens_at_once(model),
        )

        def go() -> None:
            with in_place_of_logits(model.lm_head, summary):
                output = model(**inputs, use_cache=False, logits_to_keep=256)
            output.logits.sum().backward()

        gradients = sum(parameter.nbytes for parameter in model.parameters())
        return model, peak_bytes(go) - gradients


@pytest.mark.parametrize(("masters", "gib"), [("kahan", 22.0), ("stochastic", 17.0)])
def test_full_ppo_of_1_2_billion_weights_fits_a_card_of_24_gib(masters: Any, gib: float) -> None:
    model, passes = pass_bytes(checkpointed=True)
    sizes = [parameter.numel() for parameter in model.parameters()]
    assert sum(sizes) == pytest.approx(1.236e9, rel=1e-3)
    weights, gradients = 2 * sum(sizes), 2 * sum(sizes)
    moments = sum(state_bytes(size, "adamw_8bit", masters) for size in sizes)
    trained = 2 * (weights + moments)  # policy and critic
    rounding = 2 * 4 * max(sizes)  # the largest matrix and its gradient in float32, at a step
    scoring = 2 * weights + passes  # the reference and the reward model, without gradients
    peak = trained + max(2 * gradients + max(passes, rounding), scoring)
    assert peak < gib * 2**30
    assert pass_bytes(checkpointed=False)[1] > 2 * passes
