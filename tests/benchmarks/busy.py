"""PPO of the quickstart on an idle machine and beside two programs that never rest.

    python -m tests.benchmarks.busy runs/benchmark/busy [--pairs 3]

Each way of waiting takes its turn, idle then busy: as this project sets it, as libgomp would by
itself, and without any spinning. What is printed are medians of wall and CPU seconds of the stage,
and the ratios that count: CPU seconds busy to idle, wall seconds idle to libgomp's own.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent.parent
WAYS = {
    "as set here": {},
    "libgomp's own": {"GOMP_SPINCOUNT": "300000"},  # its default where threads fit the cores
    "no spinning": {"OMP_WAIT_POLICY": "PASSIVE"},
}
Taken = dict[tuple[str, str], list[tuple[float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=768)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    begun = arguments.folder / "begun"
    rlhf("run", begun, "--until", "select")
    taken: Taken = {}
    for _ in range(arguments.pairs):
        for way, environment in WAYS.items():
            for state, programs in (("idle", 0), ("busy", 2)):
                with restless(programs):
                    seconds = ppo(begun, arguments.folder / "run", arguments.episodes, environment)
                taken.setdefault((way, state), []).append(seconds)
                print(f"{way}, {state}: {seconds[0]:.1f} s, {seconds[1]:.1f} s of CPU", flush=True)
    summary = summed(taken)
    (arguments.folder / "busy.json").write_text(
        json.dumps(summary, indent=2) + "\n", encoding="utf-8"
    )
    for way, row in summary.items():
        print(f"{way:16}" + "  ".join(f"{name} {value:.2f}" for name, value in row.items()))


def summed(taken: Taken) -> dict[str, dict[str, float]]:
    """Medians, and the two ratios."""

    def middle(way: str, state: str, which: int) -> float:
        return median(seconds[which] for seconds in taken[way, state])

    rows = {}
    for way in WAYS:
        rows[way] = {
            f"{state}_{name}_s": middle(way, state, which)
            for state in ("idle", "busy")
            for which, name in enumerate(("wall", "cpu"))
        }
        rows[way]["cpu_busy_to_idle"] = rows[way]["busy_cpu_s"] / rows[way]["idle_cpu_s"]
        own = middle("libgomp's own", "idle", 0)
        rows[way]["wall_idle_to_libgomp"] = rows[way]["idle_wall_s"] / own
    return rows


def ppo(begun: Path, run: Path, episodes: int, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of the stage in a copy of the run."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(begun, run)
    rlhf("ppo", run, "--set", f"ppo.episodes={episodes}", environment=environment)
    manifest = json.loads((run / "ppo/manifest.json").read_text(encoding="utf-8"))
    return manifest["wall_s"], manifest["cpu_s"]


def rlhf(verb: str, out: Path, *words: str, environment: dict[str, str] | None = None) -> None:
    free = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "pipeline.cli.app", verb, "configs/quickstart.yaml"]
    subprocess.run(
        [*command, "--out", str(out.resolve()), *words],
        cwd=ROOT,
        env={**free, **(environment or {})},
        check=True,
        capture_output=True,
    )


@contextmanager
def restless(programs: int) -> Iterator[None]:
    """Programs that compute without end."""
    running = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)
    ]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
