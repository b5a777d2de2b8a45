"""The effect of each family's learning-rate factor on stages one and two of the quickstart.

    python -m tests.benchmarks.family_rates RUN OUT [--only lora]

RUN is a quickstart with rankings (`rlhf run CONFIG --until label`). Every family is
trained on its demonstrations (one epoch of three) and on `RANKING_PROMPTS` of its ranked prompts
with several factors, judged by validation demonstrations and by held-out pairs: never by test
prompts. What is done is not done again; one thread.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pipeline.config.loading import load_config
from pipeline.steps.step import DataFolder
from reward_models.atomic_files import write_jsonl
from reward_models.records import Ranking, RankingTask, read_records
from stages.reward.train import train_reward
from stages.sft.train import train_sft

ROOT = Path(__file__).parents[2]
RANKING_PROMPTS = 800
FACTORS: dict[str, tuple[float, ...]] = {
    "full": (1,),
    "probe": (1, 3, 10),
    "lora": (2, 5, 10),
    "bottleneck": (2, 5, 10),
    "prefix": (5, 20, 60, 200, 600),  # ptuning-v2 is the same numbers
    "prompt": (10, 30, 100, 300, 1000),
    "bitfit": (3, 10, 30, 100),
}


def trial(run: Path, out: Path, family: str, factor: float) -> dict[str, Any]:
    """Train both stages and say how good they are on what they did not see."""
    config = load_config(ROOT / "configs/quickstart.yaml", [f"adaptation.family={family}"])
    plain = load_config(ROOT / "configs/quickstart.yaml")
    data, base = DataFolder(run / "data"), ROOT / "pipeline/quickstart/base"
    began = time.process_time()
    train_sft(
        config.sft.model_copy(
            update={"learning_rate": plain.sft.learning_rate * factor, "epochs": 1}
        ),
        base=base,
        demonstrations=data.demonstrations(),
        validation=data.demonstrations("validation"),
        out=out / "sft",
        seed=config.seed,
    )
    tasks = read_records(run / "label/tasks.jsonl", RankingTask)[:RANKING_PROMPTS]
    known = {task.id for task in tasks}
    rankings = read_records(run / "label/rankings.jsonl", Ranking)
    train_reward(
        config.reward.model_copy(update={"learning_rate": plain.reward.learning_rate * factor}),
        base=base,
        tasks=tasks,
        rankings=[one for one in rankings if one.task in known],
        demonstrations=data.demonstrations(),
        out=out / "reward",
        seed=config.seed,
    )
    chosen = json.loads((out / "sft/selection.json").read_text())
    held = json.loads((out / "reward/held_out.json").read_text())
    losses = [epoch["validation_loss"] for epoch in chosen["epochs"]]
    row = {"family": family, "factor": factor, "sft": losses, "reward": held}
    return row | {"cpu_s": time.process_time() - began}


def main(
    run: Path,
    out: Path,
    only: Annotated[list[str] | None, typer.Option(help="A family; again for more.")] = None,
) -> None:
    """Try what was not tried yet, and print a line for each."""
    torch.set_num_threads(1)
    for family in only or list(FACTORS):
        for factor in FACTORS[family]:
            folder = out / f"{family}-{factor:g}"
            if not (folder / "result.jsonl").is_file():
                write_jsonl(folder / "result.jsonl", [trial(run, folder, family, factor)])
            print((folder / "result.jsonl").read_text().strip())


if __name__ == "__main__":
    typer.run(main)
