"""The same on one GPU:   python -m tests.benchmarks.gpu OUT --trl FOLDER

A Llama of 1.1 billion parameters: PPO steps beside TRL's, what an update makes of the GPU's
arithmetic, and decoding by compiled steps beside eager ones. Ours are in the precision that a
config without `precision:` has on the device, TRL's in its bf16. Wall seconds, one step of each
side in turn; both sides' models are on the GPU at once (about 100 GB). OUT gets gpu.json. `--check`
runs all of it on a CPU, with a model of some thousand parameters: numbers of no meaning, but
whoever has a GPU at hand for an hour should not find a mistake in here.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from stages.precision import resolved
from stages.precision_config import Precision
from tests.benchmarks.alternate import Worker, alternate, ratio
from tests.benchmarks.cases import LLAMA, Case, Shape, make_policy
from tests.benchmarks.flops import sampling_flops, update_flops
from tests.benchmarks.sampling.case import SamplingCase

Rows = Mapping[str, Sequence[Mapping[str, float]]]
TINY = Shape(vocabulary=200, hidden=32, inner=64, layers=2, heads=4, kv_heads=2)
LORA = Case(
    "ppo, LoRA",
    LLAMA,
    episodes=64,
    minibatch=64,
    micro=16,
    lora_rank=16,
    merged=True,
    shortest_prompt=64,
    longest_prompt=256,
    response_limit=256,
    mean_response=85,
    first_pass=False,
    device="cuda",
    compiled=True,
)
PPO = [LORA, replace(LORA, name="ppo, LoRA, joint", models="joint")]
SAMPLING = SamplingCase(
    "sampling", LLAMA, prompts=16, prompt=166, limit=256, mean_response=85, device="cuda"
)


def gemm_peak(device: str, repeats: int = 20) -> float:
    """FLOPs a second of one large product in bfloat16, the best of some."""
    side = 8192 if device == "cuda" else 256
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16).unbind()
    best = 0.0
    for _ in range(repeats):
        _wait()
        started = time.perf_counter()
        torch.mm(a, b)
        _wait()
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def ppo(case: Case, folder: Path, trl: Path, pairs: int) -> dict[str, Any]:
    """Steps beside TRL's; the update's useful FLOPs of the peak."""
    workers = [
        Worker("ours", "tests.benchmarks.ppo.ours", sees_gpus=True),
        Worker("TRL 1.12.0", "tests.benchmarks.ppo.peer", trl, sees_gpus=True),
    ]
    rows = _measured(case, case, workers, folder, pairs)
    peak = gemm_peak(case.device)
    shares = [
        update_flops(case, row["tokens"]) / row["time/update_s"] / peak for row in rows["ours"]
    ]
    return _summary(case.name, rows) | {
        "gemm_peak_tflops": peak / 1e12,
        "useful_share_of_update": statistics.median(shares),
    }


def sampling(case: SamplingCase, folder: Path, pairs: int) -> dict[str, Any]:
    """Compiled steps, eager ones, and transformers' generate."""
    ours = "tests.benchmarks.sampling.ours"
    workers = [
        Worker("ours", ours, arguments=("compiled",), sees_gpus=True),
        Worker("ours, eager", ours, sees_gpus=True),
        Worker("transformers' generate", "tests.benchmarks.sampling.peer", sees_gpus=True),
    ]
    like = Case(case.name, case.shape, mean_response=case.mean_response)
    rows = _measured(case, like, workers, folder, pairs)
    tflops = [sampling_flops(case, row["tokens"]) / row["wall_s"] / 1e12 for row in rows["ours"]]
    return _summary(case.name, rows) | {"useful_tflops": statistics.median(tflops)}


def _measured(
    case: Case | SamplingCase, like: Case, workers: list[Worker], folder: Path, pairs: int
) -> Rows:
    folder.mkdir(parents=True, exist_ok=True)
    case.write(folder / "case.json")
    make_policy(like, folder / "policy")
    return alternate(workers, folder, pairs=pairs, warm_up=2)  # the first compiles


def _summary(name: str, rows: Rows) -> dict[str, Any]:
    peers = [peer for peer in rows if peer != "ours"]
    return {
        "case": name,
        "times_the_wall": {peer: ratio(rows, "ours", peer, "wall_s") for peer in peers},
        "wall_s": {who: statistics.median(row["wall_s"] for row in rows[who]) for who in rows},
        "peak_mib": {who: max(row["peak_mib"] for row in rows[who]) for who in rows},
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(
    out: Path,
    trl: Annotated[Path, typer.Option(help="The folder that TRL 1.12.0 was installed into.")],
    pairs: Annotated[int, typer.Option(min=1, help="Steps of each side that count.")] = 5,
    check: Annotated[bool, typer.Option(help="On a CPU, with a tiny model.")] = False,
) -> None:
    """Measure, and write gpu.json after each case."""
    if not check and not torch.cuda.is_available():
        raise typer.BadParameter("there is no GPU; --check runs the script on a CPU")
    small: dict[str, Any] = {"shape": TINY, "device": "cpu"} if check else {}
    cases: list[Callable[[], dict[str, Any]]] = [
        lambda: sampling(replace(SAMPLING, **small), out / "gpu0", pairs)
    ]
    for number, case in enumerate(PPO, 1):
        here = replace(case, **small)
        cases.append(lambda c=here, n=number: ppo(c, out / f"gpu{n}", trl, pairs))  # type: ignore[misc]
    machine = "cpu" if check else torch.cuda.get_device_name()
    about = {"date": date.today().isoformat(), "machine": machine, "torch": torch.__version__}
    numerics = resolved(Precision(), torch.device("cpu" if check else "cuda"))
    about |= {"compute": str(numerics.compute), "frozen": str(numerics.frozen.dtype)}
    results: list[dict[str, Any]] = []
    for one in cases:
        results.append(one())
        print(json.dumps(results[-1]), flush=True)
        text = json.dumps({"about": about, "cases": results}, indent=2)
        (out / "gpu.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
