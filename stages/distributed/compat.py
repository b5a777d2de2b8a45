"""Every touch of a private part of torch, transformers, TRL, PEFT, accelerate and DeepSpeed.

Each says in which version it was seen; tests/stages/distributed/test_compat.py fails where a new
version differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ACCELERATE_VARIABLES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "CUDA_VISIBLE_DEVICES")


def accelerate_environment(config: Path) -> dict[str, str]:
    """Return the variables that `accelerate launch --config_file CONFIG` gives its processes.

    accelerate 1.15: `_validate_launch_command` merges a config file into the arguments, and no
    public function does. ValueError where accelerate refuses the file.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    line = ["--config_file", str(config), "--main_process_port", "0", "script"]
    try:
        arguments, settings, has_precision = _validate_launch_command(
            launch_command_parser().parse_args(line)
        )
        if arguments.use_deepspeed:
            fields = [*settings.deepspeed_config, *(["mixed_precision"] if has_precision else [])]
            arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
            _, environment = prepare_deepspeed_cmd_env(arguments)
        elif arguments.use_fsdp or arguments.multi_gpu:
            environment = prepare_multi_gpu_env(arguments)
        else:
            _, environment = prepare_simple_launcher_cmd_env(arguments)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{config}: accelerate does not take it ({error})") from None
    variables = {
        name: value for name, value in environment.items() if name.startswith(ACCELERATE_VARIABLES)
    }
    deepspeed = variables.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if deepspeed is not None and not Path(deepspeed).is_absolute():
        variables["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(config.parent / deepspeed)
    return variables


# TRL 1.12


@contextmanager
def unembedding_of(model: PreTrainedModel, matrix: nn.Module) -> Iterator[None]:
    """Let `matrix` pass for the model's unembedding while TRL's SFTTrainer is made.

    It refuses adapters on the unembedding, because its fused loss takes the layer's weight; a
    probe's weight is the whole of what the layer computes.
    """
    if model.get_output_embeddings() is matrix:  # type: ignore[no-untyped-call]
        yield
        return
    vars(model)["get_output_embeddings"] = lambda: matrix
    try:
        yield
    finally:
        del vars(model)["get_output_embeddings"]


@contextmanager
def router_coefficient_restored(model: PreTrainedModel) -> Iterator[None]:
    """Restore what SFTTrainer overwrites in a config: the weight of experts' auxiliary loss."""
    config = model.config.get_text_config()
    coefficient = config.to_dict().get("router_aux_loss_coef")
    yield
    if coefficient is not None:
        config.router_aux_loss_coef = coefficient


# torch 2.13: both are in `torch._dynamo`, and `torch.compiler` has neither


def mark_static_address(buffer: Tensor) -> None:
    """Let compiled functions use a tensor where it is; else a CUDA graph would copy it."""
    import torch

    torch._dynamo.mark_static_address(buffer)


@contextmanager
def recompile_limit(shapes: int) -> Iterator[None]:
    """Let functions that are compiled meanwhile be compiled for so many shapes each."""
    import torch

    with torch._dynamo.config.patch(recompile_limit=shapes):
        yield
