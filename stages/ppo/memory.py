"""Whether a divided policy fits on a rank whole, which it must be to sample."""

from accelerate import Accelerator
from torch import nn

from stages.device_memory import free_memory


def check_room(model: nn.Module, accelerator: Accelerator) -> None:
    """Raise ValueError where the divided model, made whole to sample, would not fit in memory."""
    needed = sum(_whole_numel(p) * p.element_size() for p in model.parameters())
    free = free_memory(accelerator.device)
    if needed > free:
        raise ValueError(
            f"to sample, a rank needs the whole policy: {needed / 2**30:.3g} GiB, and "
            f"{free / 2**30:.3g} GiB are free; let a server sample (ppo.rollouts.kind: vllm), or "
            "use devices with more memory"
        )


def _whole_numel(parameter: nn.Parameter) -> int:
    """How many numbers it has over all ranks; DeepSpeed keeps that as an attribute."""
    numel: int = vars(parameter).get("ds_numel", parameter.numel())
    return numel
