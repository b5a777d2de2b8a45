"""The attention of models is chosen where they are loaded."""

from pathlib import Path

import pytest

from pipeline.config.experiment import ExperimentConfig
from reward_models.backbone import load_causal_lm
from reward_models.compat import attention_implementation, attention_name
from tests.reward_models.tiny import tiny_base


def test_models_are_loaded_with_the_attention_that_was_chosen(tmp_path: Path) -> None:
    source = tiny_base(tmp_path / "base")
    with attention_implementation("eager"), attention_implementation(None):
        chosen = load_causal_lm(source)
    assert attention_name(chosen.config) == "eager"
    assert attention_name(load_causal_lm(source).config) == "sdpa"


def test_attention_that_is_not_there_is_refused_in_a_line(tmp_path: Path) -> None:
    source = tiny_base(tmp_path / "base")
    for name in ("flash_attention_2", "fast"):
        choice = attention_implementation(name)
        with choice, pytest.raises(ValueError, match=rf"attn_implementation is {name}: [^\n]*$"):
            load_causal_lm(source)


def test_an_experiments_attention_is_that_of_every_stage_without_its_own() -> None:
    config = ExperimentConfig.model_validate(
        {"name": "x", "attn_implementation": "eager", "ppo": {"attn_implementation": "sdpa"}}
    )
    stages = (config.sft, config.reward, config.sampling, config.evaluation)
    assert {stage.attn_implementation for stage in stages} == {"eager"}
    assert config.ppo is not None
    assert config.ppo.attn_implementation == "sdpa"
    assert config.ppo_init is None
