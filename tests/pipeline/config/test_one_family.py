"""One key restricts every stage of an experiment, and turns up its learning rates."""

from pathlib import Path

import pytest

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.loading import load_config
from stages.adapters.config import FAMILIES

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_quickstart_runs_under_every_family_by_one_override(family):
    plain = load_config(QUICKSTART, [])
    config = load_config(QUICKSTART, [f"adaptation.family={family}"])
    assert config.ppo is not None
    assert config.ppo_ptx is not None
    stages = (config.sft, config.reward, config.ppo, config.ppo_ptx)
    assert {stage.adaptation.family for stage in stages} == {family}
    assert plain.ppo is not None
    policy, score = FAMILIES[family].rates
    for rate, usual, factor in (
        (config.sft.learning_rate, plain.sft.learning_rate, policy),
        (config.ppo.learning_rate, plain.ppo.learning_rate, policy),
        (config.reward.learning_rate, plain.reward.learning_rate, score),
        (config.ppo.critic_learning_rate, plain.ppo.critic_learning_rate, score),
    ):
        assert rate == pytest.approx(usual * factor)


def test_a_stage_with_a_family_of_its_own_keeps_it_and_its_learning_rate():
    plain = load_config(QUICKSTART, [])
    values = ["adaptation.family=prefix", "reward.adaptation.family=probe"]
    config = load_config(QUICKSTART, values)
    assert config.reward.adaptation.family == "probe"
    assert config.reward.learning_rate == plain.reward.learning_rate
    assert config.sft.adaptation.family == "prefix"


def test_a_prefix_under_an_mlp_takes_smaller_steps_than_keys_and_values():
    values = ["adaptation.family=prefix", "adaptation.reparametrise=8"]
    keys, mlp = load_config(QUICKSTART, values[:1]), load_config(QUICKSTART, values)
    assert mlp.sft.learning_rate == pytest.approx(keys.sft.learning_rate / 10)


def test_reading_a_filled_config_again_changes_nothing():
    config = load_config(QUICKSTART, ["adaptation.family=lora"])
    assert ExperimentConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_stage_that_is_left_out_stays_left_out():
    config = load_config(QUICKSTART, ["adaptation.family=lora", "ppo=null"])
    assert config.ppo is None
    assert ExperimentConfig(name="x", adaptation={"family": "lora"}).ppo_ptx is None
