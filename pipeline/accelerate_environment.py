"""What a config of accelerate tells the ranks, as `accelerate launch` would: in their environment.

The shipped configs (`configs/accelerate/*.yaml`) work with `accelerate launch` as they are; ranks
that were started otherwise read them here, by accelerate's own functions, so that a sharding means
the same whoever starts it.
"""

import os
from pathlib import Path

from pipeline.config.shipped import configs_folder

TOLD = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "CUDA_VISIBLE_DEVICES")
DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


def tell_accelerate(sharding: str) -> None:
    """Set this process's environment for a shipped sharding, or for the config at that path.

    `none` is plain data parallelism where there are several ranks, unless `accelerate launch`
    started them and has said what they are.
    """
    import torch

    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if sharding == "none":
        if any(name.startswith("ACCELERATE_") for name in os.environ):
            return
        sharding = "ddp"
    os.environ.update(accelerate_environment(config_file(sharding, on_cpu=on_cpu)))


def config_file(sharding: str, *, on_cpu: bool) -> Path:
    """The accelerate config of a shipped sharding; a path stands for itself."""
    if sharding.endswith((".yaml", ".yml", ".json")) or "/" in sharding:
        return Path(sharding)
    name = "cpu2" if sharding == "ddp" and on_cpu else sharding
    return configs_folder() / "accelerate" / f"{name}.yaml"


def accelerate_environment(file: Path) -> dict[str, str]:
    """The variables that `accelerate launch --config_file FILE` would give its processes.

    ValueError where accelerate does not take the file.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    asked = ["--config_file", str(file), "--main_process_port", "0", "pipeline.worker"]
    try:
        arguments, settings, has_precision = _validate_launch_command(
            launch_command_parser().parse_args(asked)
        )
        if arguments.use_deepspeed:
            fields = [*settings.deepspeed_config, *(["mixed_precision"] if has_precision else [])]
            arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
            _, found = prepare_deepspeed_cmd_env(arguments)
        elif arguments.use_fsdp or arguments.multi_gpu:
            found = prepare_multi_gpu_env(arguments)
        else:
            _, found = prepare_simple_launcher_cmd_env(arguments)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: accelerate does not take it ({error})") from None
    told = {name: value for name, value in found.items() if name.startswith(TOLD)}
    if DEEPSPEED_FILE in told and not Path(told[DEEPSPEED_FILE]).is_absolute():
        told[DEEPSPEED_FILE] = str(file.parent / told[DEEPSPEED_FILE])
    return told
