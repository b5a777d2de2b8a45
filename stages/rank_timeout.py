"""How long a rank waits for the others before it gives them up.

A process or host that dies closes its connections, and the others fail at once. One that is cut off
closes nothing, so its partners wait for as long as their process groups allow. DeepSpeed and
accelerate make groups whose limit is torch's default, half an hour, whatever the first was given;
so the limit is set on all groups, when all have been made.
"""

import os
from datetime import timedelta

import torch.distributed as dist

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
