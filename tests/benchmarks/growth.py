"""The growth of cost: a PPO step with more episodes or longer responses, a reward step with more K.

    python -m tests.benchmarks.growth OUT [--rounds 5]

Each size takes its turn in every round, so that a busy machine is equally busy for all, and counts
by the median of its CPU seconds. Printed is what every doubling multiplies the time by, and what
it would without attention, whose products grow with the square of the length. OUT gets growth.json
and growth.svg. Memory is what scoring a rollout adds at its peak to what is there before.
"""

import ctypes
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from reward_models.model import RewardModel
from reward_models.ranking_loss import ranking_loss
from stages.generation.generate import Sampled
from stages.ppo.forward import evaluate
from stages.ppo.ppo import iterate
from stages.ppo.rollout import Episodes
from stages.reward.shared_prompt import SharedPrompt
from tests.benchmarks.cases import SMALL, Case, make_policy, prompts
from tests.benchmarks.flops import forward
from tests.benchmarks.ppo.ours import new_run
from tests.benchmarks.reward.case import RewardCase, ranked_prompt

Step = Callable[[], object]
PPO = Case(
    "growth", SMALL, mean_response=None, response_limit=16, shortest_prompt=16, longest_prompt=16
)
EPISODES, RESPONSE, RESPONSES = (16, 32, 64, 128), (16, 32, 64, 128), (2, 4, 8, 16)
SCORED = (64, 128, 256, 512)  # episodes of which the memory is measured


def ppo_step(case: Case, folder: Path) -> Step:
    """One iteration after the other of this case."""
    run = new_run(case, folder)
    given, done = prompts(case, case.episodes), iter(range(10**6))
    return lambda: iterate(run, given, next(done))


def reward_step(case: RewardCase, folder: Path) -> Step:
    """Forward, loss and backward on one prompt with its K responses."""
    model, layout = RewardModel.from_base(folder / "policy", seed=0), SharedPrompt()

    def step() -> None:
        batch = layout.collate([ranked_prompt(case, seed=0)])
        loss = ranking_loss(layout.scores(model, batch), batch["rank_BAK"])
        torch.autograd.backward(loss)
        model.zero_grad()

    return step


def axes(folder: Path) -> dict[str, dict[int, Step]]:
    """Return the quantities that are doubled, and a step of each size."""
    return {
        "episodes": {n: ppo_step(replace(PPO, episodes=n, minibatch=n), folder) for n in EPISODES},
        "response tokens": {n: ppo_step(replace(PPO, response_limit=n), folder) for n in RESPONSE},
        "K responses to rank": {
            k: reward_step(RewardCase("growth", SMALL, k), folder) for k in RESPONSES
        },
    }


def attention_factor(axis: str, small: int, large: int) -> float:
    """Return the part of attention in a doubling: cost a token, over the small size's."""
    if axis == "episodes":
        return 1.0

    def each(size: int) -> float:
        if axis == "response tokens":
            return forward(SMALL, 1.0, (PPO.longest_prompt + size) / 2, 0.0)
        case = RewardCase("growth", SMALL, size)
        # The tree's mask is dense: every token's products with all the others are computed.
        return forward(SMALL, 1.0, case.prompt + size * case.response, 0.0)

    return each(large) / each(small)


def measure(steps: Mapping[str, Mapping[int, Step]], rounds: int) -> dict[str, dict[int, float]]:
    """Median CPU seconds of each size."""
    took: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds + 1):
        for axis, sizes in steps.items():
            for size, step in sizes.items():
                started = time.process_time()
                step()
                if turn > 0:  # the first is warm-up
                    took.setdefault((axis, size), []).append(time.process_time() - started)
    return {
        axis: {size: statistics.median(took[axis, size]) for size in sizes}
        for axis, sizes in steps.items()
    }


def scoring_memory(folder: Path) -> dict[int, float]:
    """MiB that scoring so many episodes adds at its peak, smallest first."""
    run, mib = new_run(PPO, folder), {}
    for count in (SCORED[0], *SCORED):  # once to warm up
        prompt_ids = prompts(PPO, count)
        responses = [Sampled([5] * PPO.response_limit, ended=False) for _ in prompt_ids]
        episodes = Episodes.build(prompt_ids, responses, torch.device("cpu"))
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that all begin alike
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark so far
        before = _held("VmRSS")
        evaluate(run.models, episodes, temperature=1.0, batch_size=PPO.micro)
        mib[count] = (_held("VmHWM") - before) / 1024
    return mib


def _held(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def draw(seconds: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """CPU time against size, both in those of the smallest, with the line of exact doubling."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4))
    axes.plot([1, 8], [1, 8], color="#888888", linewidth=1, label="in proportion")
    for (axis, sizes), colour in zip(
        seconds.items(), ("#2f6f8f", "#b5532a", "#4d7f3a"), strict=True
    ):
        first = min(sizes)
        x, y = [n / first for n in sizes], [s / sizes[first] for s in sizes.values()]
        axes.plot(x, y, marker="o", color=colour, label=f"{axis} ({first} to {max(sizes)})")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for ticks in (axes.set_xticks, axes.set_yticks):
        ticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.set_xlabel("times the smallest size")
    axes.set_ylabel("times its CPU seconds")
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def rows(seconds: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """One a doubling."""
    table = []
    for axis, sizes in seconds.items():
        for small, large in pairwise(sorted(sizes)):
            times = sizes[large] / sizes[small]
            without = times / attention_factor(axis, small, large)
            table.append(
                {
                    "what": axis,
                    "from": small,
                    "to": large,
                    "times": times,
                    "without_attention": without,
                }
            )
    return table


def main(
    out: Path,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each size that count.")] = 5,
) -> None:
    """Measure, print, and write growth.json and growth.svg."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    make_policy(PPO, out / "policy")
    memory = scoring_memory(out)
    seconds = measure(axes(out), rounds)
    for row in rows(seconds):
        without = f"{row['without_attention']:.2f} without attention"
        print(f"{row['what']}: {row['from']} to {row['to']}   x {row['times']:.2f}, {without}")
    for count, mib in memory.items():
        print(f"scoring {count} episodes adds {mib:.1f} MiB at its peak")
    result = {"cpu_s": seconds, "doublings": rows(seconds), "scoring_mib": memory, "rounds": rounds}
    (out / "growth.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(seconds, out / "growth.svg")


if __name__ == "__main__":
    typer.run(main)
