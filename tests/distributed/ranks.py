"""Several ranks on this machine's CPUs (gloo) for a test, forked from a process that has imported.

    found = run_ranks(work, 1, "two", processes=2, sharding="zero3", timeout_s=120)

calls work(1, "two") in every rank and returns what they gave, the first rank's first. `work` is a
function of a test module's top level; what it takes and gives is pickled. Each rank finds in its
environment what `accelerate launch` would have told it with the shipped config of that sharding.
"""

import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
SHARDINGS = ("ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2")
AFTER_A_FAILURE_S = 10.0  # for the others to notice it
Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2"]
Result = TypeVar("Result")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.distributed.preloaded"])


def run_ranks(
    work: Callable[..., Result],
    *arguments: Any,
    processes: int = 2,
    sharding: Sharding = "ddp",
    timeout_s: float = 120.0,
) -> list[Result]:
    """Return the results of `work` in every rank. AssertionError where one failed."""
    with Ranks(work, *arguments, processes=processes, sharding=sharding) as ranks:
        return ranks.results(timeout_s)


class Ranks:
    """Ranks under way; all of them are gone when the `with` block is left."""

    def __init__(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        processes: int = 2,
        sharding: Sharding = "ddp",
    ) -> None:
        self.here = tempfile.TemporaryDirectory(prefix="ranks-")
        steps = environment(sharding, processes, Path(self.here.name))
        self.processes: list[ForkServerProcess] = [
            _context.Process(
                target=_rank, args=(work, arguments, rank, steps, self.here.name), daemon=True
            )
            for rank in range(processes)
        ]

    def __enter__(self) -> "Ranks":
        os.environ["PYTHONPATH"] = str(ROOT)  # the fork server is told no sys.path on Python 3.11
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.here.cleanup()

    def kill(self, rank: int) -> None:
        """End one of them as the machine would."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def wait(self, timeout_s: float) -> list[int]:
        """The exit codes (negative: a signal); TimeoutError where one still runs."""
        ends = time.monotonic() + timeout_s
        while any(process.is_alive() for process in self.processes):
            if time.monotonic() > ends:
                raise TimeoutError(f"still running after {timeout_s:.0f} s\n{self.output()}")
            time.sleep(0.02)
        return [process.exitcode or 0 for process in self.processes]

    def results(self, timeout_s: float) -> list[Any]:
        """Return the results of the ranks, when all have ended well."""
        ends = time.monotonic() + timeout_s
        failed_at = None
        while any(process.is_alive() for process in self.processes):
            now = time.monotonic()
            if failed_at is None and any(process.exitcode for process in self.processes):
                failed_at = now
            assert now < ends, f"still running after {timeout_s:.0f} s\n{self.output()}"
            if failed_at is not None and now > failed_at + AFTER_A_FAILURE_S:
                break
            time.sleep(0.02)
        codes = [process.exitcode for process in self.processes]
        assert not any(codes), f"exit codes {codes}\n{self.output()}"
        return [
            torch.load(Path(self.here.name) / f"result-{rank}.pt", weights_only=False)
            for rank in range(len(self.processes))
        ]

    def output(self) -> str:
        """The last lines that every rank printed."""
        steps = []
        for log in sorted(Path(self.here.name).glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-20:]
            steps.append("\n".join([f"--- {log.stem}", *lines]))
        return "\n".join(steps)


def environment(sharding: Sharding, processes: int, folder: Path) -> dict[str, str]:
    """The environment of every rank, its own number aside."""
    steps = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "TORCH_EXTENSIONS_DIR": str(folder / "torch_extensions"),  # where nothing may be compiled
    }
    match sharding:
        case "none":
            assert processes == 1
            return {}
        case "ddp":
            return steps | {"ACCELERATE_USE_CPU": "true"}
        case "fsdp2":
            return steps | {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                "FSDP_RESHARD_AFTER_FORWARD": "true",
                "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
                "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
            }
        case _:
            return steps | {
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(_for_tiny_models(sharding, folder)),
                "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file,zero3_init_flag",
                "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
            }


def _for_tiny_models(sharding: Sharding, folder: Path) -> Path:
    """The shipped DeepSpeed config; ZeRO-3 would leave parameters of a tiny model whole."""
    config = json.loads((CONFIGS / f"{sharding}.json").read_text(encoding="utf-8"))
    if config["zero_optimization"]["stage"] == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / f"{sharding}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def _rank(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    rank: int,
    steps: dict[str, str],
    folder: str,
) -> None:
    log = os.open(Path(folder) / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()  # a crash below Python says where
    os.environ.update(steps)
    if steps:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    code = 0
    try:
        from stages.distributed.ranks import prepare_cpu_ranks

        prepare_cpu_ranks()
        torch.save(work(*arguments), Path(folder) / f"result-{rank}.pt")
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads would hold an orderly exit up


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
