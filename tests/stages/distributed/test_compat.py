"""The private parts of other libraries that are relied on, as they were when they were seen."""

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

from pipeline.config.shipped import accelerate_config, configs_folder
from stages.distributed.compat import (
    StageTrainer,
    accelerate_environment,
    full_shape,
    is_partitioned,
    is_updated_by_zero,
    layer_classes,
    recompile_limit,
    unwrap_optimizer,
)
from stages.models import load_policy
from stages.sft.compat import router_coefficient_restored, unembedding_of
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


def test_what_a_stage_replaces_of_trainer_is_there_and_takes_the_same():
    replaced = [name for name in vars(StageTrainer) if name.startswith("_") and name[1] != "_"]
    names = [name for name in replaced if name != "_send_telemetry"]  # TRL's
    assert len(names) == 8
    for name in [*names, "_load_scaler"]:
        original = inspect.signature(vars(Trainer)[name])
        own = inspect.signature(getattr(StageTrainer, name))
        assert list(original.parameters) == list(own.parameters), name


def test_accelerate_chooses_the_backend_where_it_is_replaced():
    from accelerate.state import PartialState

    parameters = inspect.signature(PartialState._prepare_backend).parameters
    assert list(parameters) == ["self", "cpu", "sagemaker_dp", "backend"]
    assert callable(PartialState.set_device)


def test_deepspeed_has_the_list_of_operators_where_one_is_taken_off():
    from deepspeed import ops

    assert "deepspeed_shm_comm" in ops.__compatible_ops__


def test_trl_takes_the_hooks_of_an_engine_off_and_puts_them_back():
    from trl.models.utils import add_hooks, remove_hooks

    for change in (add_hooks, remove_hooks):
        assert list(inspect.signature(change).parameters) == ["model"]


def test_torch_has_the_timeouts_of_groups_and_the_limit_of_compiled_shapes():
    world = torch.distributed.distributed_c10d
    assert list(inspect.signature(world._set_pg_timeout).parameters) == ["timeout", "group"]
    assert world._world.pg_map == {}
    with recompile_limit(3):
        assert torch._dynamo.config.recompile_limit == 3


def test_a_plain_parameter_is_none_of_deepspeeds():
    parameter = nn.Parameter(torch.zeros(2, 3))
    assert not is_partitioned(parameter)
    assert not is_updated_by_zero(parameter)
    assert full_shape(parameter) == (2, 3)


def test_adamw_is_found_inside_what_wraps_it():
    class Wrapper:
        def __init__(self, optimizer: object) -> None:
            self.optimizer = optimizer

    adam = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    assert unwrap_optimizer(Wrapper(Wrapper(adam))) == (adam, None)
    zero = Wrapper(torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
    vars(zero)["single_partition_of_fp32_groups"] = []
    with pytest.raises(ValueError, match="SGD; expected torch's AdamW"):
        unwrap_optimizer(Wrapper(zero))


def test_the_layers_of_a_model_are_known_by_class():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=5))
    assert layer_classes(nn.ModuleList([model])) == {"GPT2Block"}


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


ROOT = Path(__file__).parents[3]
PACKAGES = ("pipeline", "stages", "reward_models", "labeling_ui")
OWN = (*PACKAGES, "__future__", "_thread")  # interrupt_main has no other name
ALLOWED = {
    "_exit",  # os's name for it
    "_queue",  # gradio's, in the one file that imports it
}


def private_touches(path: Path, own: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        line = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield f"{line} {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.module:
            package, *inner = node.module.split(".")
            names = [] if package in OWN else [*inner, *(alias.name for alias in node.names)]
            yield from (f"{line} {name} of {node.module}" for name in names if is_private(name))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.Module) -> Iterator[str]:
    """Every name that this code base itself defines as a function, a class or an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) == "self":
                yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def test_private_parts_of_libraries_are_touched_in_files_named_compat_only():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    own = ALLOWED.copy()
    for path in files:
        if path.name != "compat.py":
            own |= set(own_names(ast.parse(path.read_text(encoding="utf-8"))))
    others = [path for path in files if path.name != "compat.py"]
    assert [touch for path in others for touch in private_touches(path, own)] == []
