"""Peak memory of PPO steps on a 135M model, ours beside TRL's.

    python -m tests.benchmarks.peak_memory OUT --trl FOLDER

Each way runs alone, in a process of its own that loads, then makes two steps of 8 episodes; the
peak is what the kernel says of the process, libraries and loading included. The weights are random,
of SmolLM2-135M's shape; one copy is 621 MiB with its untied unembedding. FOLDER is where TRL 1.12.0
lies. OUT gets memory.json. TRL's full fine-tuning takes most: see that 9 GB are free.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tests.benchmarks.alternate import Worker, alternate
from tests.benchmarks.cases import SMOLLM2, Case, make_policy

LORA = Case(
    "memory",
    SMOLLM2,
    episodes=8,
    minibatch=8,
    micro=2,
    response_limit=16,
    mean_response=None,
    shortest_prompt=16,
    longest_prompt=16,
    lora_rank=16,
)
OURS, TRL = "tests.benchmarks.ppo.ours", "tests.benchmarks.ppo.peer"
WAYS: dict[str, tuple[Case, str]] = {
    "LoRA, joint": (replace(LORA, models="joint"), OURS),
    "LoRA, joint, sampled merged": (replace(LORA, models="joint", merged=True), OURS),
    "LoRA, four adapters on one backbone": (replace(LORA, one_backbone=True), OURS),
    "the same, no first pass kept": (replace(LORA, one_backbone=True, first_pass=False), OURS),
    "LoRA, TRL 1.12.0": (LORA, TRL),
    "full, TRL 1.12.0": (replace(LORA, lora_rank=None), TRL),
}


def peak_mib(name: str, folder: Path, trl: Path) -> float:
    """Return the peak of one way."""
    case, module = WAYS[name]
    folder.mkdir(parents=True, exist_ok=True)
    case.write(folder / "case.json")
    if not (folder / "policy").is_dir():
        make_policy(case, folder / "policy")
    worker = Worker(name, module, trl if module == TRL else None)
    (row,) = alternate([worker], folder, pairs=1)[name]
    return float(row["peak_mib"])


def main(
    out: Path,
    trl: Annotated[Path, typer.Option(help="The folder that TRL 1.12.0 was installed into.")],
    only: Annotated[str, typer.Option(help="Ways whose name contains this.")] = "",
) -> None:
    """Measure the ways that are named, and print a table of all."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "memory.json"
    peaks: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    for number, name in enumerate(WAYS):
        if only in name:
            peaks[name] = peak_mib(name, out / f"way{number}", trl)
            path.write_text(json.dumps(peaks, indent=2) + "\n", encoding="utf-8")
    for name, mib in peaks.items():
        against = ", ".join(
            f"{mib / peaks[peer]:.2f} of {peer}" for peer in WAYS if "TRL" in peer and peer in peaks
        )
        print(f"{name}: {mib:,.0f} MiB   {against}")


if __name__ == "__main__":
    typer.run(main)
