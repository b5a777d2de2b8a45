"""Rankings that reach an accuracy: tasks and outputs drawn at random against chosen ones.

    python -m tests.benchmarks.choice OUT --run RUN --pairs FILE [--encoder DIR]

RUN is a finished quickstart: its tasks are ranked anew, K = 4 of the sampled outputs, by one
simulated annotator each; features are the states of its fine-tuned model. `--pairs` is a file of
hh-rlhf, whose own labels are the rankings; features are of the encoder (mean-pooled, of the last
turn with the response and of the response alone), else TF-IDF in 256 dimensions (LSA). A linear
head is trained on what is ranked so far and judged by held-out pairs. `random` draws tasks,
`uncertainty` orders them by `pipeline.labeling.selection`, one in five still at random; `outputs`
draws tasks and chooses the K of their outputs; `both` does both. The first ten tasks are drawn.
Writes OUT/choice.json: an accuracy by budget, seed and way of choosing.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import t

from pipeline.labeling.selection import Heads, fit_heads, information, order_tasks, scaled
from reward_models.records import RankingTask, read_records

Floats = NDArray[np.float64]
Pairs = list[tuple[int, int]]  # numbers of outputs, better first
WAYS = ("random", "uncertainty", "outputs", "both")
BUDGETS = (10, 20, 40, 60, 80, 120, 160, 240, 320, 480, 640)
BLOCK = 20  # tasks chosen before the heads are fitted again
CANDIDATES = 400  # tasks among which a block is chosen
K = 4
SHARE = 0.2  # drawn at random, whatever is known
PRECISIONS = (0.01, 0.1, 1.0, 10.0)
ALIKE = 0.02  # of the mean squared distance of a task's outputs


def choose_outputs(heads: Heads, feature_KD: Floats, num_outputs: int) -> list[int]:
    """Return the numbers of those outputs whose comparison tells most, in ascending order.

    Greedy: the best pair, then the output that adds most. One that is almost like a chosen one
    comes only where no other is left: its order with the others would be told twice.
    """
    if num_outputs >= len(feature_KD):
        return list(range(len(feature_KD)))
    score_K, kernel_KK = heads.scores(feature_KD), feature_KD @ heads.covariance_DD @ feature_KD.T
    size_K = (feature_KD**2).sum(1)
    distance_KK = size_K[:, None] + size_K - 2.0 * feature_KD @ feature_KD.T
    alike_KK = distance_KK < ALIKE * distance_KK.mean()
    chosen: list[int] = []
    while len(chosen) < num_outputs:
        more = combinations(range(len(score_K)), 1 if chosen else 2)
        new = [one for one in more if not set(one) & set(chosen)]
        distinct = [one for one in new if not any(alike_KK[i, j] for i in one for j in chosen)]
        trials = [[*chosen, *one] for one in distinct or new]
        chosen = max(trials, key=lambda t: information(score_K[t], kernel_KK[np.ix_(t, t)]))
    return sorted(chosen)


@dataclass(frozen=True)
class World:
    """Tasks with the features of their outputs, and somebody who orders some of them."""

    name: str
    features: Sequence[Floats]
    order: Callable[[int, Sequence[int], random.Random], Pairs]
    ways: Sequence[str]
    held_out: int
    precisions: Sequence[float]


def curve(world: World, way: str, seed: int, precision: float) -> list[float]:
    """Return the held-out accuracy at each budget."""
    rng = random.Random(f"{world.name} {seed}")
    tasks = list(range(len(world.features)))
    rng.shuffle(tasks)
    held, pool = tasks[: world.held_out], tasks[world.held_out :]
    judged = []
    for task in held:
        outputs = _drawn(world, task, rng)
        judged += [
            world.features[task][a] - world.features[task][b]
            for a, b in world.order(task, outputs, rng)
        ]
    test_ND, gaps, accuracies, done = np.stack(judged), [], [], 0
    heads = fit_heads(np.zeros((0, test_ND.shape[1])), precision)
    for budget in [b for b in BUDGETS if b <= len(pool) + done]:
        while done < budget:
            size = min(BLOCK, budget - done)
            for task, outputs in _block(world, way if done else "random", pool, heads, size, rng):
                pool.remove(task)
                gaps += [
                    world.features[task][a] - world.features[task][b]
                    for a, b in world.order(task, outputs, rng)
                ]
                done += 1
            heads = fit_heads(np.stack(gaps), precision)
        accuracies.append(float((test_ND @ heads.mean_D > 0).mean()))
    return accuracies


def _block(
    world: World, way: str, pool: Sequence[int], heads: Any, size: int, rng: random.Random
) -> list[tuple[int, list[int]]]:
    candidates = rng.sample(pool, min(CANDIDATES, len(pool)))
    if way in ("random", "outputs"):
        candidates = candidates[:size]
    outputs = {
        task: choose_outputs(heads, world.features[task], K)
        if way in ("outputs", "both")
        else _drawn(world, task, rng)
        for task in candidates
    }
    if way in ("random", "outputs"):
        return list(outputs.items())
    features = [world.features[task][outputs[task]] for task in candidates]
    reserved = range(round(SHARE * len(candidates)))  # the candidates are in random order
    order = order_tasks(heads, features, size, reserved=reserved, random_share=SHARE, rng=rng)
    return [(candidates[choice.task], outputs[candidates[choice.task]]) for choice in order]


def _drawn(world: World, task: int, rng: random.Random) -> list[int]:
    number = len(world.features[task])
    return sorted(rng.sample(range(number), min(K, number)))


def quickstart(run: Path, cache: Path) -> World:
    """The tasks of a run, ranked by a simulated annotator each time that they are asked for."""
    from pipeline.quickstart.annotators import POOL, rank
    from pipeline.quickstart.judge import GOLD
    from pipeline.steps.label import _worlds
    from pipeline.steps.step import DataFolder

    tasks = read_records(run / "label/tasks.jsonl", RankingTask)
    worlds = _worlds(tasks, DataFolder(run / "data").prompts("ranking"))

    def order(number: int, outputs: Sequence[int], rng: random.Random) -> Pairs:
        task = tasks[number]
        part = RankingTask(
            task.id, task.prompt, tuple(task.responses[i] for i in outputs), context=task.context
        )
        ranks = rank(part, worlds[task.id], rng.choice(POOL), rng, GOLD).ranks
        numbers = {task.responses[i].id: i for i in outputs}
        return [(numbers[a], numbers[b]) for a in ranks for b in ranks if ranks[a] < ranks[b]]

    features = scaled(_cached(cache, lambda: _states(run / "sft/model", tasks)))
    return World("quickstart", features, order, WAYS, 500, PRECISIONS)


def _states(model: Path, tasks: Sequence[RankingTask]) -> list[Floats]:
    from pipeline.labeling.choosing import response_features
    from reward_models.model import RewardModel
    from stages.models import load_policy, load_tokenizer

    whole = RewardModel.on(load_policy(model), 0, base=str(model))
    return response_features(whole, load_tokenizer(model), tasks)


def hh_rlhf(path: Path, encoder: Path | None, cache: Path) -> World:
    """Pairs of hh-rlhf with their own labels."""
    from stages.data.preferences import load_pairs

    tasks, rankings = load_pairs(path)

    def order(number: int, _: Sequence[int], __: random.Random) -> Pairs:
        return [(0, 1) if rankings[number].ranks["a"] == 1 else (1, 0)]

    answers = [response.text for task in tasks for response in task.responses]
    prompts = [task.prompt for task in tasks for _ in task.responses]
    texts = [f"{prompt}\n{answer}" for prompt, answer in zip(prompts, answers, strict=True)]

    def computed() -> list[Floats]:
        vectors = (
            _lsa(answers)
            if encoder is None
            else np.hstack([_encoded(encoder, answers), _encoded(encoder, texts)])
        )
        return [vectors[2 * i : 2 * i + 2] for i in range(len(tasks))]

    features = scaled(_cached(cache, computed))
    name = "hh-rlhf, " + ("TF-IDF" if encoder is None else encoder.name)
    return World(name, features, order, ("random", "uncertainty"), 600, PRECISIONS)


def _lsa(texts: Sequence[str]) -> Floats:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    table = TfidfVectorizer(sublinear_tf=True, min_df=3, ngram_range=(1, 2)).fit_transform(texts)
    return np.asarray(TruncatedSVD(256, random_state=0).fit_transform(table))


def _encoded(encoder: Path, texts: Sequence[str]) -> Floats:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = np.zeros((len(texts), model.config.hidden_size))
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        batch = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=160,
            return_tensors="pt",
        )
        with torch.no_grad():
            hidden_BLD = model(**batch).last_hidden_state
        mask_BL = batch["attention_mask"][..., None]
        vectors[rows] = ((hidden_BLD * mask_BL).sum(1) / mask_BL.sum(1)).numpy()
    return vectors


def _cached(path: Path, compute: Callable[[], list[Floats]]) -> list[Floats]:
    if not path.is_file():
        arrays = compute()
        np.savez(path, *arrays)
    stored = np.load(path)
    return [stored[f"arr_{i}"].astype(np.float64) for i in range(len(stored.files))]


def main(
    out: Path,
    run: Annotated[Path | None, typer.Option()] = None,
    pairs: Annotated[Path | None, typer.Option()] = None,
    encoder: Annotated[Path | None, typer.Option()] = None,
    seeds: Annotated[int, typer.Option()] = 10,
) -> None:
    """Measure and print both worlds."""
    out.mkdir(parents=True, exist_ok=True)
    worlds = []
    if run is not None:
        worlds.append(quickstart(run, out / "quickstart.npz"))
    if pairs is not None:
        name = re.sub(r"\W+", "-", "tf-idf" if encoder is None else encoder.name)
        worlds.append(hh_rlhf(pairs, encoder, out / f"hh-rlhf-{name}.npz"))
    results = (
        json.loads((out / "choice.json").read_text()) if (out / "choice.json").is_file() else {}
    )
    for world in worlds:
        # The prior is chosen for the random way, on other seeds than those that are compared.
        trials = {
            p: np.mean([curve(world, "random", 1000 + s, p) for s in range(3)])
            for p in world.precisions
        }
        precision = max(trials, key=lambda p: trials[p])
        print(world.name, "precision", precision, {p: round(v, 4) for p, v in trials.items()})
        by_way = {}
        for way in world.ways:
            by_way[way] = [curve(world, way, seed, precision) for seed in range(seeds)]
            print(way, np.round(np.mean(by_way[way], 0), 4), flush=True)
        results[world.name] = {"precision": precision, "budgets": BUDGETS, "curves": by_way}
        (out / "choice.json").write_text(json.dumps(results))
        print_summary(by_way)


def print_summary(by_way: Mapping[str, list[list[float]]]) -> None:
    """Print each way's accuracy, less that of random, and the rankings that reach random's.

    Intervals are over seeds: Student's t of the paired difference, and a bootstrap.
    """
    random_SB, rng = np.array(by_way["random"]), np.random.default_rng(0)
    for way, curves in by_way.items():
        way_SB = np.array(curves)
        gap_SB, num_seeds = way_SB - random_SB, len(way_SB)
        half_B = t.ppf(0.975, num_seeds - 1) * gap_SB.std(0, ddof=1) / num_seeds**0.5
        parts = zip(BUDGETS, way_SB.mean(0), gap_SB.mean(0), half_B, strict=False)
        print(way, *(f"{b}: {a:.3f} ({g:+.3f} +- {h:.3f})" for b, a, g, h in parts))
        for budget in (40, 80, 160, 320):
            draws = [rng.integers(0, num_seeds, num_seeds) for _ in range(1000)]
            means = [(random_SB[d].mean(0), way_SB[d].mean(0)) for d in draws]
            needed = [_needed(one, other, budget) for one, other in means]
            low, high = np.quantile(needed, (0.025, 0.975))
            value = _needed(random_SB.mean(0), way_SB.mean(0), budget)
            print(
                f"  random's accuracy at {budget}: {value:.0f} rankings ({low:.0f} to {high:.0f})"
            )


def _needed(random_B: Floats, way_B: Floats, budget: int) -> float:
    """Return the rankings with which a way's curve, made monotone, reaches random's at a budget."""
    target = np.maximum.accumulate(random_B)[BUDGETS.index(budget)]
    curve_B = np.maximum.accumulate(way_B)
    above = np.flatnonzero(curve_B >= target)
    if not len(above):
        return float(BUDGETS[len(curve_B) - 1])  # not within the budgets: at least so many
    i = int(above[0])
    if i == 0:
        return float(BUDGETS[0])
    part = (target - curve_B[i - 1]) / (curve_B[i] - curve_B[i - 1])
    return float(BUDGETS[i - 1] + part * (BUDGETS[i] - BUDGETS[i - 1]))


if __name__ == "__main__":
    typer.run(main)
