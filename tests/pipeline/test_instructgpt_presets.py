"""The presets hold the paper's values (Ouyang et al. 2022, appendix C), key by key."""

from pathlib import Path

import pytest
import yaml

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.loading import load_config
from pipeline.steps.order import experiment_stages

ROOT = Path(__file__).parent.parent.parent
SIZES = ("1.3b", "6b", "175b")
# appendix C.1, C.3 and C.4, by size of the policy
BY_SIZE = {
    "sft.learning_rate": (9.65e-6, 9.65e-6, 5.03e-6),
    "sft.batch_size": (32, 32, 8),
    "ppo_init.learning_rate": (5e-6, 1.04e-5, 2.45e-6),
    "ppo_init.batch_size": (32, 32, 8),
    "ppo.critic_learning_rate": (9e-6, 9e-6, 5e-6),
}
ALL = {
    "sft.epochs": 16,
    "sft.dropout": 0.2,
    "sft_choice": "reward",
    "sampling.responses": (4, 9),
    "reward.epochs": 1,
    "reward.learning_rate": 9e-6,
    "reward.prompts_per_batch": 64,
    "reward.batch_element": "prompt",
    "ppo_init.epochs": 2,
    "ppo_init.result": "last",
    "ppo_init.pretraining.share": 0.1,
    "ppo.episodes": 256_000,
    "ppo.episodes_per_rollout": 512,
    "ppo.minibatch": 64,
    "ppo.inner_epochs": 1,
    "ppo.warmup_iterations": 10,
    "ppo.clip": 0.2,
    "ppo.gamma": 1.0,
    "ppo.kl.kind": "fixed",
    "ppo.kl.coefficient": 0.02,
    "ppo.ema_decay": 0.992,
    "ppo.sampling.temperature": 1.0,
    "ppo.sampling.top_p": 1.0,
    "ppo.sampling.max_new_tokens": 1024,
    "ppo_ptx.pretraining.coefficient": 27.8,
    "ppo_ptx.pretraining.examples_per_episode": 8.0,
    "evaluation.baseline": "sft",
}


def preset(size: str) -> ExperimentConfig:
    return load_config(ROOT / f"configs/instructgpt/{size}.yaml")


def value(config: ExperimentConfig, key: str) -> object:
    results: object = config.model_dump()
    for part in key.split("."):
        assert isinstance(results, dict)
        results = results[part]
    return results


@pytest.mark.parametrize("size", SIZES)
def test_a_preset_has_every_value_of_the_paper(size: str) -> None:
    config = preset(size)
    wanted = {**ALL, **{key: values[SIZES.index(size)] for key, values in BY_SIZE.items()}}
    assert {key: value(config, key) for key in wanted} == wanted
    assert config.ppo is not None
    assert config.ppo.iterations == 500


@pytest.mark.parametrize("size", SIZES)
def test_ptx_is_ppo_with_the_mix_and_nothing_else(size: str) -> None:
    config = preset(size)
    assert config.ppo is not None
    assert config.ppo_ptx is not None
    assert config.ppo_ptx.model_copy(update={"pretraining": None}) == config.ppo


@pytest.mark.parametrize("size", SIZES)
def test_every_value_of_a_preset_says_where_it_is_from(size: str) -> None:
    text = (ROOT / f"configs/instructgpt/{size}.yaml").read_text()
    lines = [line for line in text.partition("seed: 0")[2].splitlines() if line.strip()]
    silent = [line for line in lines if "#" not in line]
    headings = ("kind: files", "settings:", "ppo_init:", "ppo: &ppo", "ppo_ptx:", "<<: *ppo")
    headings += (
        "sft:",
        "reward:",
        "sampling:",
        "labeling:",
        "trainer:",
        "pretraining:",
        "kind: human",
    )
    headings += ("baseline: sft",)
    assert [line for line in silent if line.strip() not in headings] == []


@pytest.mark.parametrize("size", SIZES)
def test_every_setting_of_a_training_stage_is_written_out(size: str) -> None:
    """A default that changes must not change a preset."""
    written = yaml.safe_load((ROOT / f"configs/instructgpt/{size}.yaml").read_text())
    config = preset(size)
    left_to_us = {
        "adaptation",
        "trainer",
        "checkpoint_every",
        "health",
        "validation",
        "overoptimization",
        *("precision", "optimizer", "activation_checkpointing", "attn_implementation"),
    }
    for name, ours in (
        ("sft", config.sft),
        ("reward", config.reward),
        ("ppo_init", config.ppo_init),
        ("ppo", config.ppo),
    ):
        assert ours is not None
        unset = {"pretraining", "result", "selection"} - set(written[name])
        assert set(type(ours).model_fields) - left_to_us - unset <= set(written[name]), name


@pytest.mark.parametrize("size", SIZES)
def test_ppo_starts_at_and_is_held_to_its_own_fine_tuning(size: str) -> None:
    stages = {stage.name: stage for stage in experiment_stages(preset(size), Path("runs/x"))}
    assert stages["ppo"].inputs()["policy"] == Path("runs/x/ppo-init/model")
    assert stages["evaluate"].inputs()["sft"] == Path("runs/x/select/model")
    assert stages["ppo-init"].inputs()["texts"] == Path("runs/x/data/pretraining_texts.jsonl")
    assert "texts" not in stages["sft"].inputs()
