"""The private parts of other libraries that are relied on, as they were when they were seen."""

import json
from pathlib import Path

import pytest
import yaml
from torch import nn
from transformers import Trainer

from pipeline.config.shipped import accelerate_config, configs_folder
from stages.distributed.compat import (
    accelerate_environment,
    router_coefficient_restored,
    unembedding_of,
)
from stages.models import load_policy
from tests.reward_models.tiny import tiny_base

SHARDINGS = ("ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2")


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_accelerate_takes_every_shipped_config_and_sets_the_sharding(sharding: str):
    file = accelerate_config(sharding, on_cpu=False)
    environment = accelerate_environment(file)
    assert yaml.safe_load(file.read_text())["num_processes"] == 2
    if sharding.startswith("zero"):
        numbers = json.loads(Path(environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text())
        stage = int(sharding.removeprefix("zero")[0])
        assert numbers["zero_optimization"]["stage"] == stage
        assert ("offload_param" in numbers["zero_optimization"]) == sharding.endswith("offload")
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    elif sharding == "fsdp2":
        assert (environment["ACCELERATE_USE_FSDP"], environment["FSDP_VERSION"]) == ("true", "2")
    assert "ACCELERATE_USE_CPU" not in environment


def test_copies_on_cpus_are_set_to_use_no_accelerator():
    environment = accelerate_environment(accelerate_config("ddp", on_cpu=True))
    assert environment["ACCELERATE_USE_CPU"] == "True"
    files = (configs_folder() / "accelerate").glob("*.yaml")
    assert {path.stem for path in files} == {"cpu2", *SHARDINGS}


def test_a_file_that_accelerate_refuses_is_one_line(tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: NONSENSE\n")
    with pytest.raises(ValueError, match="accelerate does not take it"):
        accelerate_environment(own)


def test_the_unembedding_is_another_one_while_a_trainer_is_made(tmp_path: Path):
    model = load_policy(tiny_base(tmp_path / "base"))
    own, other = model.get_output_embeddings(), nn.Linear(2, 2)
    with unembedding_of(model, other):
        assert model.get_output_embeddings() is other
    assert model.get_output_embeddings() is own


def test_trl_overwrites_a_router_s_coefficient_which_is_restored(tmp_path: Path):
    model = load_policy(tiny_base(tmp_path / "base"))
    model.config.router_aux_loss_coef = 0.5
    with router_coefficient_restored(model):
        model.config.router_aux_loss_coef = 0.0
    assert model.config.router_aux_loss_coef == 0.5


@pytest.mark.parametrize(
    "method",
    [
        *("_save", "_save_checkpoint", "_save_optimizer_and_scheduler", "_get_output_dir"),
        *("_get_train_sampler", "_get_num_items_in_batch", "_prepare_for_training"),
        *("_load_from_checkpoint", "_load_scaler"),
    ],
)
def test_the_trainer_has_the_methods_that_ours_override(method: str):
    assert callable(getattr(Trainer, method))
