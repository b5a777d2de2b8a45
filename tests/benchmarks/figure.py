"""The benchmark as a picture: how many times our CPU seconds each peer takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(cases: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One bar a case and peer: the median of the ratios, with the worst and best pair."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    bars = [
        (f"{case['case']}\n{peer}", times)
        for case in cases
        for peer, times in case["times_the_cpu"].items()
    ]
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(bars) + 1))
    for y, (_, times) in enumerate(reversed(bars)):
        axes.barh(y, times["median"] - 1.0, left=1.0, color="#2f6f8f", height=0.6)
        axes.plot([times["worst"], times["best"]], [y, y], color="#222222", linewidth=1.5)
        axes.text(times["best"] * 1.03, y, f"{times['median']:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [name for name, _ in reversed(bars)], fontsize=8)
    axes.axvline(1.0, color="#888888", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.set_xlabel("CPU time of the peer, this project = 1 (median, worst and best pair)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
