"""Each guard provoked in a real run: it stops and says what to change, or takes the run back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reward_models.model import RewardModel
from stages.generation.generate import generate_responses
from stages.ppo import ppo, rollout
from stages.ppo.config import PPOConfig
from stages.ppo.health import UnhealthyRunError
from stages.progress import Step
from tests.stages.ppo.test_resume import PowerCutError, assert_same_result
from tests.stages.ppo.tiny_ppo import metrics_of, tiny_config, tiny_world, train

OFF = {  # no limit is crossed
    "max_kl_nats_per_token": 1e9,
    "min_eos_rate": 0.0,
    "min_entropy_nats": 0.0,
    "max_repetition": 1.0,
    "min_distinct": 0.0,
    "max_length_growth": 1e9,
}
WILD = {"learning_rate": 0.05, "kl": {"kind": "fixed", "coefficient": 0.0}, "episodes": 240}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def guarded(limits: dict[str, Any], **changes: Any) -> PPOConfig:
    """A run that stops for these limits only."""
    return tiny_config(**{"health": {"action": "stop", **OFF, **limits}, **changes})


@pytest.mark.parametrize(
    ("limits", "changes", "message"),
    [
        (
            {"max_kl_nats_per_token": 1.0},
            WILD,
            r"ppo/kl_nats_per_token is .*max_kl_nats_per_token \(1\).*kl.coefficient",
        ),
        (
            {"max_length_growth": 1.2},
            {**WILD, "missing_eos_score": 20.0, "sampling": {"max_new_tokens": 16}},
            r"ppo/length_growth is 1\..*above health.max_length_growth.*favours length",
        ),
        (
            {"min_eos_rate": 0.02},
            {**WILD, "missing_eos_score": 20.0},
            r"ppo/eos_rate is 0, below health.min_eos_rate.*missing_eos_score",
        ),
        (
            {"min_entropy_nats": 0.3},
            WILD,
            r"ppo/entropy_nats_per_token is .*has collapsed; raise kl.coefficient",
        ),
        (
            {"max_repetition": 0.3},
            {**WILD, "missing_eos_score": 20.0, "sampling": {"max_new_tokens": 16}},
            r"ppo/repetition is .*likes loops; raise kl.coefficient",
        ),
        ({"min_distinct": 0.5}, WILD, r"ppo/distinct_responses is .*one answer to every prompt"),
    ],
)
def test_a_run_that_goes_wrong_is_stopped_with_the_setting_to_change(
    world: tuple[Path, Path],
    tmp_path: Path,
    limits: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UnhealthyRunError, match=r"^iteration \d+: " + message):
        train(world, tmp_path, guarded(limits, **changes))


def test_sampling_another_distribution_than_the_trained_one_is_found_by_its_negative_kl(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = generate_responses

    def hotter(*args: Any, **named: Any) -> Any:
        model, tokenizer, prompts, sampling = args
        hot = sampling.model_copy(update={"temperature": 20.0})
        return honest(model, tokenizer, prompts, hot, **named)

    monkeypatch.setattr(rollout, "generate_responses", hotter)
    config = guarded({}, learning_rate=0.02, episodes=240)
    with pytest.raises(UnhealthyRunError, match=r"below 0 by more than.*sampling.temperature"):
        train(world, tmp_path, config)


def test_a_policy_with_other_outputs_in_training_is_stopped_at_the_first_minibatch(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ppo.experience

    def drifting(read: rollout.Rollout, *args: Any) -> Any:
        return honest(replace(read, old_BT=read.old_BT - 0.001 * read.episodes.response_BT), *args)

    monkeypatch.setattr(ppo, "experience", drifting)
    back = tiny_config(health={"action": "rollback"})
    with pytest.raises(UnhealthyRunError, match=r"iteration 1: at the first .* is off 1 by 0.001"):
        train(world, tmp_path, back)  # no smaller step would mend it, so nothing is taken back


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (3e38, r"scores of 8 of 8 responses are not finite: the reward model is broken"),
        (1e25, r"the critic gradient is not finite: .* lower learning_rate, or set score_clip"),
    ],
)
def test_scores_and_gradients_that_are_not_finite_stop_the_run_before_a_step(
    world: tuple[Path, Path], tmp_path: Path, weight: float, message: str
) -> None:
    reward = RewardModel.load(world[1])
    with torch.no_grad():
        reward.head.weight.fill_(weight)
    reward.save(tmp_path / "reward")
    with pytest.raises(UnhealthyRunError, match=message):
        train((world[0], tmp_path / "reward"), tmp_path / "out", guarded({}))


# A tenth of the learning rate is calm enough.
CAREFUL = {
    **WILD,
    "episodes": 8 * 8,
    "health": {
        **OFF,
        "max_kl_nats_per_token": 0.1,
        "action": "rollback",
        "rollback": {"times": 3, "learning_rate_factor": 0.1, "kl_factor": 2.0},
    },
    "kl": {"kind": "fixed", "coefficient": 0.05},
}


def test_an_unstable_run_is_rolled_back_to_its_last_good_checkpoint_with_smaller_steps(
    world: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = metrics_of(world, tmp_path, tiny_config(**CAREFUL))
    back = [json.loads(line) for line in (tmp_path / "rollbacks.jsonl").read_text().splitlines()]
    assert 1 <= len(back) <= 3
    assert "(rollback 1 of 3)" in caplog.text
    assert "raise kl.coefficient or lower learning_rate" in back[0]["why"]
    assert all(one["to_iteration"] < one["from_iteration"] for one in back)
    assert back[0]["to_iteration"] % 2 == 0  # checkpoint_every
    times = len(back)
    assert steps[-1]["ppo/learning_rate"] == pytest.approx(0.05 * 0.1**times)
    assert steps[-1]["ppo/kl_coefficient"] == pytest.approx(0.05 * 2**times)
    assert steps[-1]["ppo/rollbacks"] == times
    assert steps[-1]["ppo/kl_nats_per_token"] <= 0.1


def test_a_run_that_is_killed_after_a_rollback_ends_bit_equal(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    config = tiny_config(**CAREFUL)
    train(world, tmp_path / "whole", config)
    after: list[Step] = []

    def cut(step: Step) -> None:
        if step.metrics.get("ppo/rollbacks"):
            after.append(step)
        if len(after) == 1:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train(world, tmp_path / "killed", config, cut)
    train(world, tmp_path / "killed", config)
    assert_same_result(tmp_path / "killed", tmp_path / "whole")
    left = [(tmp_path / name / "rollbacks.jsonl").read_bytes() for name in ("killed", "whole")]
    assert left[0] == left[1]


def test_rollbacks_are_bounded_and_the_error_names_the_settings(
    world: tuple[Path, Path], tmp_path: Path
) -> None:
    guards = CAREFUL["health"] | {"rollback": {"times": 1, "learning_rate_factor": 0.99}}
    with pytest.raises(
        UnhealthyRunError, match=r"\(after 1 rollbacks, .* learning_rate 0.0495 or less and kl.coef"
    ):
        train(world, tmp_path, tiny_config(**CAREFUL | {"health": guards}))


@pytest.mark.parametrize(
    ("guards", "message"),
    [
        ({"action": "stop", "rollback": {"times": 1}}, "health.action is 'stop'; expected roll"),
        (
            {"action": "rollback", "rollback": {"learning_rate_factor": 1.0, "kl_factor": 1.0}},
            "are both 1",
        ),
    ],
)
def test_a_rollback_without_effect_is_refused(guards: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(health=guards)
