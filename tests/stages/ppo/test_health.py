"""Every sickness is named with its likely cause and the setting to change."""

from pathlib import Path

import pytest
import torch
from torch import nn

from stages.generation.generate import Sampled
from stages.ppo.config import HealthChecks
from stages.ppo.health import (
    MetricSums,
    UnhealthyRunError,
    alarms,
    check_first_ratio,
    check_starting_kl,
    distinct_responses,
    preflight,
    repetition,
)
from stages.ppo.ppo import experience, optimizer_step, update
from stages.ppo.rollout import Episodes
from stages.seeding import endless_order, generator_for
from tests.stages.ppo.tiny_ppo import (
    outputs,
    roll_out,
    tiny_config,
    tiny_models,
    tiny_run,
    tiny_world,
)

HEALTHY = {
    "ppo/kl_nats": 3.0,
    "ppo/kl_standard_error_nats": 0.1,
    "ppo/kl_nats_per_token": 0.2,
    "ppo/eos_rate": 0.9,
    "ppo/entropy_nats_per_token": 1.0,
    "ppo/repetition": 0.1,
    "ppo/distinct_responses": 0.9,
    "ppo/length_growth": 1.2,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_world(tmp_path_factory.mktemp("world"))


def test_a_healthy_iteration_raises_no_alarm() -> None:
    assert alarms(HEALTHY, HealthChecks()) == []


@pytest.mark.parametrize(
    ("metric", "value", "setting"),
    [
        ("ppo/kl_nats_per_token", 5.0, "kl.coefficient"),
        ("ppo/kl_nats", -3.0, "sampling.temperature"),
        ("ppo/eos_rate", 0.0, "missing_eos_score"),
        ("ppo/entropy_nats_per_token", 0.0, "learning_rate"),
        ("ppo/repetition", 0.9, "kl.coefficient"),
        ("ppo/distinct_responses", 0.01, "kl.coefficient"),
        ("ppo/length_growth", 9.0, "kl.coefficient"),
        ("ppo/kl_nats", float("nan"), "score_clip"),
    ],
)
def test_an_alarm_names_the_metric_and_the_setting(metric: str, value: float, setting: str) -> None:
    (alarm,) = alarms(HEALTHY | {metric: value}, HealthChecks())
    assert metric in alarm
    assert setting in alarm


def test_a_kl_that_is_negative_by_chance_is_no_alarm() -> None:
    by_chance = {"ppo/kl_nats": -0.3, "ppo/kl_standard_error_nats": 0.2}
    assert alarms(HEALTHY | by_chance, HealthChecks()) == []


def test_the_first_ratio_may_be_off_by_rounding_only() -> None:
    whole, half = nn.Linear(1, 1), nn.Linear(1, 1).bfloat16()
    check_first_ratio(9e-6, torch.float32, whole)
    check_first_ratio(9e-3, torch.float32, half)
    check_first_ratio(9e-3, torch.bfloat16, whole)
    for error in (2e-5, float("nan")):
        with pytest.raises(UnhealthyRunError, match="first minibatch"):
            check_first_ratio(error, torch.float32, whole)


def test_a_policy_that_changed_after_scoring_is_stopped_before_a_step(
    world: tuple[Path, Path],
) -> None:
    run = tiny_run(world, tiny_config(episodes_per_rollout=4))
    prompts = [[3, 4], [5, 6, 7], [8], [9, 4]]
    sampling = run.config.sampling
    episodes = roll_out(run.models, prompts, sampling, generator_for(0, "test"))
    rollout = outputs(run.models, episodes)
    data, _ = experience(rollout, run.config, 0.1)
    with torch.no_grad():
        next(iter(run.policy.parameters.values())).mul_(1.01)
    before = [p.clone() for p in run.policy.parameters.values()]
    with pytest.raises(UnhealthyRunError, match="off 1 by"):
        update(run, data, 0, MetricSums())
    for old, new in zip(before, run.policy.parameters.values(), strict=True):
        assert torch.equal(old, new)


def test_a_reference_that_is_not_the_policy_is_stopped() -> None:
    check_starting_kl(torch.zeros(3))
    check_starting_kl(torch.tensor([0.0, -2.4e-7]))  # one rounding
    with pytest.raises(UnhealthyRunError, match="not a snapshot"):
        check_starting_kl(torch.tensor([0.0, -1e-4]))


def test_gradients_that_are_not_finite_never_reach_the_weights(world: tuple[Path, Path]) -> None:
    run = tiny_run(world, tiny_config())
    for parameter in run.policy.parameters.values():
        parameter.grad = torch.full_like(parameter, float("nan"))
    with pytest.raises(UnhealthyRunError, match="learning_rate"):
        optimizer_step(run, 0, MetricSums())
    assert all(p.isfinite().all() for p in run.policy.parameters.values())


def test_pad_that_is_eos_is_refused(world: tuple[Path, Path]) -> None:
    models = tiny_models(world, tiny_config())
    models.tokenizer.pad_token = models.tokenizer.eos_token
    with pytest.raises(ValueError, match="PAD and EOS"):
        preflight(models, tiny_config(), [[3]])


def test_dropout_that_is_on_is_refused(world: tuple[Path, Path]) -> None:
    models = tiny_models(world, tiny_config())
    models.critic.add_module("late", nn.Dropout(0.1))
    with pytest.raises(ValueError, match=r"dropout is on in the critic \(late\)"):
        preflight(models, tiny_config(), [[3]])


def episodes_of(*responses: list[int]) -> Episodes:
    sampled = [Sampled(ids, ended=False) for ids in responses]
    return Episodes.build([[1]] * len(responses), sampled, torch.device("cpu"))


def test_repetition_is_the_share_of_trigrams_seen_before() -> None:
    shares = repetition(episodes_of([4, 5, 6, 7], [4, 4, 4, 4, 4, 4], [4]))
    assert shares == pytest.approx([0.0, 0.75, 0.0])


def test_distinct_responses_are_counted_without_their_padding() -> None:
    assert distinct_responses(episodes_of([4, 5], [4, 5], [5], [4, 5, 6])) == 3


def test_every_pass_visits_everything_once_in_its_own_order() -> None:
    whole = endless_order(7, 0, 21, 0, "prompts")
    passes = [whole[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(visited) == list(range(7)) for visited in passes)
    assert passes[0] != passes[1]
    assert endless_order(7, 5, 9, 0, "prompts") == whole[5:14]


def test_a_generator_depends_on_every_part_of_its_place() -> None:
    positions = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2)]
    drawn = {float(torch.rand((), generator=generator_for(*position))) for position in positions}
    assert len(drawn) == 4
