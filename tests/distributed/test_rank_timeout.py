"""A rank that hears nothing from another gives up when it was told to, in every group."""

import time

import pytest
import torch
import torch.distributed as dist

from stages.distributed.ranks import TIMEOUT, limit_waits
from tests.distributed.ranks import run_ranks


def waited_for_nobody() -> float:
    """Seconds until the first rank gave up a partner that takes no part (0 for the partner)."""
    dist.init_process_group("gloo")
    group = dist.new_group()  # with torch's own limit, as DeepSpeed's
    limit_waits(2.0)
    begun, gave_up_s = time.monotonic(), 0.0
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
            dist.all_reduce(torch.ones(1), group=group)
        gave_up_s = time.monotonic() - begun
    else:
        time.sleep(5.0)
    return gave_up_s


@pytest.mark.distributed
def test_a_silent_partner_is_given_up_in_groups_that_others_made():
    gave_up_s, _ = run_ranks(waited_for_nobody)
    assert 1.5 < gave_up_s < 4.5


def test_alone_there_is_nobody_to_wait_for():
    limit_waits()


@pytest.mark.parametrize("told", ["soon", "0", "-3", "nan"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(
    steps: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(TIMEOUT, steps)
    with pytest.raises(ValueError, match="expected seconds above 0"):
        limit_waits()
