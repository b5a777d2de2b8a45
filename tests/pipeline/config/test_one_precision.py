"""An experiment's `precision` is that of every stage, but for the keys that a stage names."""

from typing import Any

import pytest

from pipeline.config.loading import checked
from stages.precision_config import Precision

LORA: dict[str, Any] = {"family": "lora"}


def experiment(**keys: Any) -> Any:
    return checked({"name": "test", **keys}, "test.yaml")


def test_a_stage_takes_the_experiments_precision_key_by_key():
    config = experiment(
        precision={"weights": "bf16"},
        sft={"precision": {"weights": "fp32"}},
        ppo={"precision": {"masters": "kahan"}},
    )
    assert config.sft.precision == Precision(weights="fp32")
    assert config.reward.precision == Precision(weights="bf16")
    assert config.ppo.precision == Precision(weights="bf16", masters="kahan")
    assert config.sampling.precision == config.evaluation.precision == Precision(weights="bf16")
    assert config.ppo_ptx is None


def test_quantised_weights_are_refused_where_all_of_them_would_be_trained():
    expected = r"precision.weights is nf4 but adaptation.family is full"
    with pytest.raises(ValueError, match=expected):
        experiment(precision={"weights": "nf4"})
    config = experiment(precision={"weights": "nf4"}, adaptation=LORA)
    assert config.reward.precision.weights == "nf4"


def test_frozen_weights_have_one_dtype():
    with pytest.raises(ValueError, match=r"weights is bf16 but precision.compute is fp32"):
        experiment(precision={"weights": "bf16", "compute": "fp32"})
    assert experiment(ppo={"precision": {"compute": "bf16"}}).ppo.precision.weights == "auto"
