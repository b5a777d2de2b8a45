"""The ties of a rank to the process that started it: its steps go there, and they end together."""

import ctypes
import json
import os
import signal
import sys

from stages.progress import Report, Step

STEPS = "steps"  # the queue in the ranks' store
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_launcher(launcher: int) -> None:
    """Let the kernel kill this process when the one that launched it dies, whatever kills that.

    Only Linux can; elsewhere the other ranks notice when they next meet.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:  # it died before
            os._exit(1)


def step_sender() -> Report:
    """Return what sends the steps of rank 0, by the store where the ranks meet."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("localhost", int(os.environ["MASTER_PORT"]))

    def report(step: Step) -> None:
        row = [step.done, step.total, dict(step.metrics), step.doing]
        store.queue_push(STEPS, json.dumps(row))
        store.queue_len(STEPS)  # answered once the step has arrived

    return report
