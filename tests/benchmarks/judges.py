"""A reward model that learns from people, from judges or from both, scored on people's rankings.

    python -m tests.benchmarks.judges OUT --run RUN

RUN is a finished quickstart. Its simulated annotators stand for people. Three judges rank the same
tasks through `pipeline.labeling.judging`, in both orders: `good` scores as the gold judge does with
noise (0.5, about as a simulated annotator), `longer` counts words, `first` is `good` with a bonus
of 1.0 for what comes first. The reward model is a linear head on the states of the fine-tuned
model, as in `tests.benchmarks.choice`. Prints each judge's row of the report, and accuracies over
seeds.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import numpy as np
import typer
from scipy.stats import t

from labeling_ui.reports.judges import judge_rows
from pipeline.labeling.judging import LocalJudge, judged
from pipeline.labeling.selection import Floats, fit_heads
from pipeline.quickstart.annotators import simulate
from pipeline.quickstart.judge import judge as gold_judge
from pipeline.steps.label import _worlds
from pipeline.steps.step import DataFolder
from reward_models.records import Ranking, RankingTask, Response, read_records
from tests.benchmarks.choice import quickstart

PEOPLE, JUDGED, HELD_OUT = 100, 1000, 500
SEEDS = 10


def main(out: Path, run: Annotated[Path, typer.Option()]) -> None:
    """Measure and print."""
    out.mkdir(parents=True, exist_ok=True)
    features = quickstart(run, out / "quickstart.npz").features
    tasks = read_records(run / "label/tasks.jsonl", RankingTask)
    worlds = _worlds(tasks, DataFolder(run / "data").prompts("ranking"))
    rng = random.Random("judges")

    def good(task: RankingTask, order: Sequence[Response]) -> list[float]:
        return [
            gold_judge(worlds[task.id], r.text, r.ended).score + rng.gauss(0, 0.5) for r in order
        ]

    def first(task: RankingTask, order: Sequence[Response]) -> list[float]:
        return [score + (i == 0) for i, score in enumerate(good(task, order))]

    def longer(_: RankingTask, order: Sequence[Response]) -> list[float]:
        return [float(len(response.text.split())) for response in order]

    people = simulate(tasks, worlds, 7, overlap=0.0)
    results: dict[str, object] = {}
    for name, score in {"good": good, "longer": longer, "first": first}.items():
        judgements = [one for one in judged(LocalJudge(Path(name), score), tasks) if one]
        (row,) = judge_rows(tasks, people, judgements, np.random.default_rng(0))
        print(json.dumps({key: row[key] for key in row if key != "people"}))
        accuracy = {
            use: [
                _accuracy(features, tasks, people, judgements, use, seed) for seed in range(SEEDS)
            ]
            for use in ("people", "judges", "both")
        }
        results[name] = accuracy
        for use, values in accuracy.items():
            half = t.ppf(0.975, SEEDS - 1) * stdev(values) / SEEDS**0.5
            print(f"{name} {use}: {fmean(values):.4f} +- {half:.4f}")
    (out / "judges.json").write_text(json.dumps(results))


def _accuracy(
    features: Sequence[Floats],
    tasks: Sequence[RankingTask],
    people: Sequence[Ranking],
    judgements: Sequence[Ranking],
    use: str,
    seed: int,
) -> float:
    """Return the accuracy on people's held-out rankings of a head that learned from this use."""
    numbers = list(range(len(tasks)))
    random.Random(f"split {seed}").shuffle(numbers)
    held, rest = numbers[:HELD_OUT], numbers[HELD_OUT:]
    learned = [(n, people[n]) for n in rest[:PEOPLE]] if use != "judges" else []
    learned += [(n, judgements[n]) for n in rest[:JUDGED]] if use != "people" else []
    heads = fit_heads(np.concatenate([_gaps(features[n], tasks[n], one) for n, one in learned]))
    test = np.concatenate([_gaps(features[n], tasks[n], people[n]) for n in held])
    return float((test @ heads.mean_D > 0).mean())


def _gaps(feature_KD: Floats, task: RankingTask, ranking: Ranking) -> Floats:
    rows = dict(zip((r.id for r in task.responses), feature_KD, strict=True))
    pairs = [rows[a] - rows[b] for a, b in ranking.comparisons()]
    return np.reshape(pairs, (-1, feature_KD.shape[1]))


if __name__ == "__main__":
    typer.run(main)
