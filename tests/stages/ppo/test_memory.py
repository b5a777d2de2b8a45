"""Settings that save memory in PPO change no number, and save what they say."""

from pathlib import Path
from typing import Any

import pytest

from stages.chunked_logprobs import logprobs_and_entropy
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
        ("top_layers", PARTS),
        ("lora", {"models": {"kind": "shared-critic"}}),
        ("lora-above", {"models": {"kind": "joint"}}),
        ("prompt", {"minibatch": 8, "cached": {"first_forward": True}}),
        ("bottleneck", {"packed": False}),
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
