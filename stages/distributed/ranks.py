"""One rank among several: on CPUs, and how long it waits for the others.

A process or host that dies closes its connections, and the others fail at once. One that is cut off
closes nothing, so its partners wait for as long as their process groups allow.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from stages.distributed import compat

TIMEOUT = "RLHF_RANK_TIMEOUT_S"
DEFAULT_TIMEOUT_S = 1800.0  # rank 0 may be writing a large checkpoint while the others wait


def prepare_cpu_ranks() -> None:
    """Close three gaps of DeepSpeed and accelerate on CPUs, before a process's first Accelerator.

    Nothing changes in a process that runs alone, or where there is an accelerator.
    """
    if torch.accelerator.is_available() or "LOCAL_RANK" not in os.environ:
        return
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        compat.skip_shared_memory_op()
        compat.use_gloo(None)
    elif os.environ.get("ACCELERATE_USE_FSDP") == "true":
        compat.use_gloo("MULTI_GPU")  # it shards where it believes in GPUs


def limit_waits(timeout_s: float | None = None) -> None:
    """Let no collective of this process wait longer, by default than $RLHF_RANK_TIMEOUT_S.

    Every rank calls it after DeepSpeed or accelerate has prepared everything, as groups made later
    have limits of their own. Nothing happens where a process is alone.
    """
    limit = timedelta(seconds=_configured_timeout_s() if timeout_s is None else timeout_s)
    if dist.is_available() and dist.is_initialized():
        compat.set_group_timeouts(limit)


def _configured_timeout_s() -> float:
    value = os.environ.get(TIMEOUT, str(DEFAULT_TIMEOUT_S))
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not seconds > 0.0:  # nor is NaN
        raise ValueError(f"{TIMEOUT} is {value!r}; expected seconds above 0")
    return seconds
