"""The speed of a core at one large matrix product:  python -m tests.benchmarks.product FOLDER.

It takes its turn beside the steps whose arithmetic is held against it, so that a core which slows
down under a neighbour's load does so for both. A moment's best is up to a fifth above what the
same core goes on giving; both are told.
"""

import time

import torch

from tests.benchmarks.worker import Meter, step_protocol

SIDE = 1024  # of square float32 matrices
SECONDS = 3.0  # a turn


def main() -> None:
    """Turns until nobody asks any more."""
    send, wait_for_go = step_protocol()
    torch.set_num_threads(1)
    left, right, out = torch.randn(3, SIDE, SIDE).unbind()
    send({"ready": True})
    while wait_for_go():
        meter, best, products = Meter(), 0.0, 0
        begun = time.process_time()
        while time.process_time() - begun < SECONDS:
            started = time.process_time()
            torch.mm(left, right, out=out)
            best = max(best, _gflops(1, time.process_time() - started))
            products += 1
        took = meter.read()
        send({**took, "gflops": _gflops(products, took["cpu_s"]), "best_gflops": best})


def _gflops(products: int, seconds: float) -> float:
    return products * 2 * SIDE**3 / seconds / 1e9


if __name__ == "__main__":
    main()
