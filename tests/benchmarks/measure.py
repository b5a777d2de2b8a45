"""Speed beside the peers:   python -m tests.benchmarks.measure OUT --trl FOLDER

Both sides do the same work - same model, prompts, lengths, settings - one step each in turn, in
processes of their own with one thread. What counts are CPU seconds and the median of the ratios of
neighbouring steps, because a machine is never quite idle. OUT gets benchmark.json and
benchmark.svg; FOLDER is where TRL 1.12.0, the last with a PPO trainer, lies (`make bench` puts it
there).
"""

import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cpuinfo import get_cpu_info
from transformers.utils import logging

from stages.distributed.memory import give_back_freed_memory
from tests.benchmarks.alternate import Worker, alternate, ratio
from tests.benchmarks.cases import SMALL, SMOLLM2, Case, make_policy
from tests.benchmarks.figure import draw
from tests.benchmarks.flops import ppo_flops, reward_flops, sampling_flops
from tests.benchmarks.reward.case import RewardCase
from tests.benchmarks.sampling.case import SamplingCase

Rows = Mapping[str, Sequence[Mapping[str, float]]]
PPO = [
    Case("ppo, full, lengths as they come", SMALL),
    Case("ppo, full, fixed lengths", SMALL, mean_response=None),
    Case("ppo, LoRA, lengths as they come", SMALL, lora_rank=16, merged=True),
    Case(
        "ppo, LoRA, joint, lengths as they come", SMALL, lora_rank=16, models="joint", merged=True
    ),
    Case("ppo, top third of the layers, 4 inner epochs", SMALL, inner_epochs=4, top_layers=2),
]
LARGE = [
    Case("ppo, full, lengths as they come, SmolLM2-135M's shape", SMOLLM2),
    Case(
        "ppo, full, fixed lengths, SmolLM2-135M's shape",
        SMOLLM2,
        mean_response=None,
        episodes=24,
        minibatch=24,  # both sides keep their memory, and together must fit 24 GB
    ),
]
ALONE = [  # no peer: what a step makes of the machine where rollouts are as large as they should be
    replace(case, name=f"{case.name}, {episodes} episodes", episodes=episodes, minibatch=minibatch)
    for cases, episodes, minibatch in ((PPO[:2], 512, 64), (LARGE, 128, 32))
    for case in cases
]
REWARD = [RewardCase(f"reward model, K = {k}", SMALL, k) for k in (4, 9)]
SAMPLING = [
    SamplingCase("sampling, K = 4", SMALL),
    SamplingCase("sampling, K = 4, prompts of 166 tokens", SMALL, prompt=166),
    SamplingCase(
        "sampling, K = 4, prompts of 199, responses of 88 tokens",  # what the paper had ranked
        SMALL,
        prompt=199,
        limit=256,
        mean_response=88,
    ),
]
PRODUCT = Worker("a matrix product", "tests.benchmarks.product")
NAMES = [case.name for case in [*PPO, *REWARD, *SAMPLING, *LARGE, *ALONE]]  # as tables have them


@dataclass(frozen=True, slots=True)
class Measurement:
    """A case, who takes part, and how many useful FLOPs ours does in a step that took so long."""

    case: Case | RewardCase | SamplingCase
    workers: list[Worker]
    flops: Callable[[Mapping[str, float]], float]

    @property
    def warm_up(self) -> int:
        """Steps that do not count: until a heap has grown to what a step needs.

        Where a page costs ten microseconds, the second step of a short one still takes twice as
        long as the sixth.
        """
        return 1 if self.case in LARGE + ALONE else 4


def measurements(trl: Path) -> list[Measurement]:
    """All of them, in the order of the table, the large ones last; "ours" first, then the peers."""
    layouts = "tests.benchmarks.reward.layouts"
    measurements = [_ppo(case, trl) for case in PPO]
    for reward in REWARD:
        workers = [
            Worker("ours", layouts, arguments=("shared",)),
            Worker("K separate passes", layouts, arguments=("separate",)),
            Worker("TRL's RewardTrainer, all pairs", "tests.benchmarks.reward.peer"),
        ]
        measurements.append(Measurement(reward, workers, lambda _, c=reward: reward_flops(c)))  # type: ignore[misc]
    for sampling in SAMPLING:
        workers = [
            Worker("ours", "tests.benchmarks.sampling.ours"),
            Worker("transformers' generate", "tests.benchmarks.sampling.peer"),
        ]
        measurements.append(
            Measurement(sampling, workers, lambda row, c=sampling: sampling_flops(c, row["tokens"]))  # type: ignore[misc]
        )
    measurements += [_ppo(case, trl) for case in LARGE]
    return measurements + [_ppo(case) for case in ALONE]


def _ppo(case: Case, trl: Path | None = None) -> Measurement:
    workers = [Worker("ours", "tests.benchmarks.ppo.ours")]
    workers += [] if trl is None else _ppo_peers(case, trl)
    return Measurement(case, workers, lambda row: ppo_flops(case, row["tokens"]))


def _ppo_peers(case: Case, trl: Path) -> list[Worker]:
    """TRL, which also moves all layers where the case freezes some."""
    peer = "tests.benchmarks.ppo.peer"
    if case.top_layers is None:
        return [Worker("TRL 1.12.0", peer, trl)]
    everything = Worker("TRL 1.12.0, all layers", peer, trl, arguments=("all",))
    return [Worker("TRL 1.12.0, the same layers", peer, trl), everything]


def measure(one: Measurement, folder: Path, pairs: int) -> dict[str, Any]:
    """One line of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    one.case.write(folder / "case.json")
    ppo = one.case if isinstance(one.case, Case) else Case(one.case.name, one.case.shape)
    if isinstance(one.case, SamplingCase):
        ppo = Case(one.case.name, one.case.shape, mean_response=one.case.mean_response)
    make_policy(ppo, folder / "policy")
    give_back_freed_memory()
    rows = alternate([*one.workers, PRODUCT], folder, pairs=pairs, warm_up=one.warm_up)
    names = [worker.name for worker in one.workers]
    own, product = rows["ours"], rows[PRODUCT.name]
    shares = [
        one.flops(row) / row["cpu_s"] / (beside["gflops"] * 1e9)
        for row, beside in zip(own, product, strict=True)
    ]
    return {
        "case": one.case.name,
        "pairs": pairs,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "times_the_cpu": {name: ratio(rows, "ours", name) for name in names[1:]},
        "times_the_wall": {name: ratio(rows, "ours", name, "wall_s") for name in names[1:]},
        "cpu_s": {name: _median(rows[name], "cpu_s") for name in names},
        "peak_mib": {name: max(row["peak_mib"] for row in rows[name]) for name in names},
        "phases_s": {key: _median(own, key) for key in own[0] if key.startswith("time/")},
        "product_gflops": _median(product, "gflops"),
        "product_best_gflops": max(row["best_gflops"] for row in product),
        "useful_share_of_product": statistics.median(shares),
    }


def _median(rows: Sequence[Mapping[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def main(
    out: Path,
    trl: Annotated[Path, typer.Option(help="The folder that TRL 1.12.0 was installed into.")],
    pairs: Annotated[int, typer.Option(min=1, help="Steps of each side that count.")] = 5,
    only: Annotated[
        str, typer.Option(help='Cases whose name contains this; "135M" takes 24 GB.')
    ] = "",
) -> None:
    """Measure, and write benchmark.json and benchmark.svg; what they have already stays.

    Without --only, all but the large ones.
    """
    torch.set_num_threads(1)
    path = out / "benchmark.json"
    measured = {} if not path.is_file() else _cases_by_name(json.loads(path.read_text())["cases"])
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of tiny files being written
    large = {case.name for case in LARGE + ALONE}
    chosen = [
        (number, one)
        for number, one in enumerate(measurements(trl))
        if ((only in one.case.name) if only else (one.case.name not in large))
    ]
    for turn, (number, one) in enumerate(chosen, start=1):
        name = one.case.name
        print(f"[{turn}/{len(chosen)}] {name} ...", flush=True)
        measured[name] = measure(one, out / f"case{number}", pairs)
        _write(measured, path)
        for peer, ratios in measured[name]["times_the_cpu"].items():
            print(f"    {peer}: {ratios['median']:.2f} times the CPU seconds", flush=True)
    print(path)


def _cases_by_name(cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {case["case"]: case for case in cases}


def _write(measured: Mapping[str, dict[str, Any]], path: Path) -> None:
    about = {
        "date": date.today().isoformat(),
        "machine": get_cpu_info().get("brand_raw") or platform.machine(),
        "torch": torch.__version__,
        "threads": 1,
    }
    cases = sorted(measured.values(), key=lambda case: NAMES.index(case["case"]))
    text = json.dumps({"about": about, "cases": cases}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    draw(cases, path.with_suffix(".svg"))


if __name__ == "__main__":
    typer.run(main)
