"""Several processes without an accelerator: what accelerate and DeepSpeed leave open on CPUs.

`let_ranks_run_on_cpu()` is called before a process's first Accelerator or TrainingArguments. It
changes nothing in a process that runs alone, or where there is an accelerator.
"""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def let_ranks_run_on_cpu() -> None:
    """Close three gaps of a launched process on CPUs.

    - DeepSpeed would compile its shared-memory operator at every start (minutes, and a failure
      where there is no compiler); gloo does the work.
    - accelerate picks no backend for DeepSpeed and FSDP, so every rank believes to be alone.
    - accelerate knows no FSDP on CPUs and trains data-parallel without a word; told that there are
      GPUs, it shards, and its device has to be said.
    """
    if torch.accelerator.is_available() or "LOCAL_RANK" not in os.environ:
        return
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        _choose_gloo(None)
    elif os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _choose_gloo("MULTI_GPU")


def _choose_gloo(kind: str | None) -> None:
    """Let accelerate find gloo, and the `kind` of processes where its own finding is none."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    original = PartialState._prepare_backend

    def with_gloo(
        state: Any, cpu: bool = False, sagemaker_dp: bool = False, backend: str | None = None
    ) -> tuple[str, Any]:
        found, distributed_type = original(state, cpu, sagemaker_dp, backend)
        return found or "gloo", distributed_type if kind is None else DistributedType(kind)

    def on_cpu(state: Any) -> None:
        state.device = torch.device("cpu")

    PartialState._prepare_backend = with_gloo
    PartialState.set_device = on_cpu


ENVIRONMENT = "RLHF_RANK_TIMEOUT_S"
DEFAULT_S = 1800.0  # the first rank may be writing a large checkpoint while the others wait


def limit_waits(wait_s: float | None = None) -> None:
    """Let no collective of this process wait longer than `wait_s`, else than the environment says.

    That is $RLHF_RANK_TIMEOUT_S, half an hour where it is not set.
    Called on every rank after DeepSpeed or accelerate has prepared everything, as groups made later
    have limits of their own. Does nothing where a process is alone. ValueError for a limit that is
    no number above 0.
    """
    limit = timedelta(seconds=wait_s if wait_s is not None else _told_s())
    if not dist.is_available() or not dist.is_initialized():
        return
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(limit, group)


def _told_s() -> float:
    told = os.environ.get(ENVIRONMENT, str(DEFAULT_S))
    try:
        seconds = float(told)
    except ValueError:
        seconds = 0.0
    if not seconds > 0.0:  # nor is NaN
        raise ValueError(f"{ENVIRONMENT} is {told!r}; expected seconds above 0")
    return seconds
