"""The quickstart under every family, and a table of what each costs and reaches.

    python -m tests.benchmarks.families OUT [--only lora] [--set seed=1]

writes a run a family into OUT and prints a row for each that is done, in Markdown. Runs that are
done are not run again. All in one thread: what counts are CPU minutes.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from reward_models.row_files import read_jsonl
from stages.adapters.config import FAMILIES

ROOT = Path(__file__).parents[2]
COLUMNS = (
    "family",
    "moved",
    "share of the base",
    "won against its SFT",
    "gold",
    "its SFT's",
    "score",
    "KL, nats",
    "made up, %",
    "toxicity",
    "CPU minutes",
    "GiB",
)
LAST = 3  # iterations whose KL is averaged


def run(family: str, out: Path, sets: list[str]) -> None:
    """`rlhf run` with the one override; what is up to date is skipped."""
    settings = [f"adaptation.family={family}", "threads=1", *sets]
    options = [word for setting in settings for word in ("--set", setting)]
    command = ("-m", "pipeline.cli.app", "run", "configs/quickstart.yaml", "--out", str(out))
    subprocess.run([sys.executable, *command, *options], cwd=ROOT, check=True)


def row(family: str, run: Path) -> list[str]:
    """The table's cells of a run that is done."""
    results = json.loads((run / "evaluate/results.json").read_text())["results"]
    name = "ppo-ptx" if "ppo-ptx" in results else "ppo"
    metrics = results[name]
    steps = [step for _, step in read_jsonl(run / name / "metrics.jsonl")]
    kl = [step["ppo/kl_nats"] for step in steps if "ppo/kl_nats" in step][-LAST:]
    spent = [json.loads(path.read_text()) for path in run.glob("*/manifest.json")]
    return [
        f"`{family}`",
        f"{steps[0]['ppo/trained_parameters']:,.0f}",
        f"{steps[0]['ppo/trained_share']:.2%}",
        _measured(metrics["preference"], "win_rate", "all", 100, ".0f"),
        _measured(metrics["use_cases"], "gold", "all", 1, ".2f"),
        format(results["sft"]["use_cases"]["gold,all"], ".2f"),
        _measured(metrics["reward_model"], "score", "all", 1, ".2f"),
        f"{sum(kl) / len(kl):.2f}",
        _measured(metrics["hallucination"], "hallucination", "all", 100, ".0f"),
        _measured(metrics["toxicity"], "toxicity", "none", 1, ".3f"),
        f"{sum(stage['cpu_s'] for stage in spent) / 60:.1f}",
        f"{max(stage['peak_rss_bytes'] for stage in spent) / 2**30:.2f}",
    ]


def _measured(metrics: dict[str, Any], name: str, part: str, times: float, form: str) -> str:
    low, high = (format(times * end, form) for end in metrics[f"{name}_ci95,{part}"])
    return f"{format(times * metrics[f'{name},{part}'], form)} ({low}–{high})"  # noqa: RUF001


def main(
    out: Path,
    only: Annotated[list[str] | None, typer.Option(help="A family; again for more.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="As for rlhf run.")] = None,
) -> None:
    """Run what is not done yet, and print the table."""
    for family in only or list(FAMILIES):
        run(family, out / family, sets or [])
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for family in FAMILIES:
        if (out / family / "report").is_dir():
            print("| " + " | ".join(row(family, out / family)) + " |")


if __name__ == "__main__":
    typer.run(main)
