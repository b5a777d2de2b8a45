"""Drives measured processes in turn and reports medians of ratios, not ratios of medians."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Worker:
    """A module of ours to run, and the folder of a peer's package to put before it, if any."""

    name: str
    module: str
    package: Path | None = None
    arguments: tuple[str, ...] = ()
    sees_gpus: bool = False


class _Process:
    def __init__(self, worker: Worker, folder: Path, log: Any) -> None:
        path = [str(ROOT)] if worker.package is None else [str(worker.package), str(ROOT)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **({} if worker.sees_gpus else {"CUDA_VISIBLE_DEVICES": ""}),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker.module, str(folder), *worker.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self._read()

    def step(self) -> dict[str, Any]:
        """One step, and what it took."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        return self._read()

    def stop(self) -> None:
        """No more steps."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with code {self._process.wait()}; see its log")
        row: dict[str, Any] = json.loads(line)
        return row


def alternate(
    workers: Sequence[Worker], folder: Path, *, pairs: int, warm_up: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """`pairs` measured steps of each worker in turn, after `warm_up` that do not count.

    Whoever goes first alternates. Logs of the workers go to folder/log.txt.
    """
    with (folder / "log.txt").open("w") as log:
        running = {worker.name: _Process(worker, folder, log) for worker in workers}
        rows_by_worker: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
        try:
            for turn in range(warm_up + pairs):
                order = list(running) if turn % 2 == 0 else list(running)[::-1]
                for name in order:
                    row = running[name].step()
                    if turn >= warm_up:
                        rows_by_worker[name].append(row)
        finally:
            for process in running.values():
                process.stop()
    return rows_by_worker


def ratio(
    rows: Mapping[str, Sequence[Mapping[str, float]]], ours: str, peer: str, key: str = "cpu_s"
) -> dict[str, float]:
    """Return the ratio of the peer's cost to ours: median, worst and best of the pairs."""
    pairs = [theirs[key] / own[key] for own, theirs in zip(rows[ours], rows[peer], strict=True)]
    return {"median": statistics.median(pairs), "worst": min(pairs), "best": max(pairs)}
