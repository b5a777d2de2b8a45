"""docs/performance.md from what was measured:   python -m tests.benchmarks.page MEASURED

MEASURED is the folder that `measure`, `growth` and `peak_memory` wrote into; what is missing there
is said to be missing. The figures go to docs/ beside the page.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

DOCS = Path(__file__).parents[2] / "docs"
PAGE = Path(__file__).with_suffix(".md")


def cases(measured: Path) -> Iterator[str]:
    """Rows of the table of peers."""
    yield "| | peer | times the CPU seconds | peak MiB, ours / peer |"
    yield "|---|---|---|---|"
    content = _read(measured / "benchmark.json")["cases"]
    for case in content:
        fewer = "" if case["pairs"] == content[0]["pairs"] else f" ({case['pairs']} pairs)"
        for peer, times in case["times_the_cpu"].items():
            took = f"**{times['median']:.2f}** ({times['worst']:.2f}, {times['best']:.2f})"
            peak = f"{case['peak_mib']['ours']:,.0f} / {case['peak_mib'][peer]:,.0f}"
            yield f"| {case['case']}{fewer} | {peer} | {took} | {peak} |"


def arithmetic(measured: Path) -> Iterator[str]:
    """Rows of the useful FLOPs, on the processor as it is and held to AVX2."""
    folders = [folder for folder in (measured, measured / "avx2") if folder.is_dir()]
    every = [case for folder in folders for case in _read(folder / "benchmark.json")["cases"]]
    content = [case for case in every if "useful_share_of_product" in case]
    product = "GFLOP/s of the product (at best)"
    yield f"| | instructions | steps | CPU seconds | {product} | ours | peer |"
    yield "|---|---|---|---|---|---|---|"
    for case in content:
        share = case["useful_share_of_product"]
        peers = [f"{share / times['median']:.0%}" for times in case["times_the_cpu"].values()]
        product = f"{case['product_gflops']:.0f} ({case['product_best_gflops']:.0f})"
        how = f"{case['instructions']} | {case['pairs']} | {case['cpu_s']['ours']:.1f} | {product}"
        yield f"| {case['case']} | {how} | **{share:.0%}** | {', '.join(peers)} |"


def growth(measured: Path) -> Iterator[str]:
    """Yield the effect of doublings on time, and of more episodes on the memory of scoring."""
    if not (measured / "growth.json").is_file():
        yield "Not measured yet."
        return
    content = _read(measured / "growth.json")
    yield "What a doubling multiplies the CPU seconds by; the last column leaves out what"
    yield "attention adds, whose products grow with the square of the length."
    yield ""
    yield "| | from | to | times | without attention |"
    yield "|---|---|---|---|---|"
    for row in content["doublings"]:
        times = f"{row['times']:.2f} | {row['without_attention']:.2f}"
        yield f"| {row['what']} | {row['from']} | {row['to']} | {times} |"
    worst = max(row["without_attention"] for row in content["doublings"])
    yield ""
    yield f"No doubling costs more than {worst:.2f} times the time, attention aside"
    yield f"(the median of {content['rounds']} steps of each size, in turn)."
    yield ""
    yield "![CPU seconds against size](growth.svg)"
    yield ""
    scored = ", ".join(f"{mib:.1f} for {n}" for n, mib in content["scoring_mib"].items())
    yield "Episodes are scored in micro-batches. What scoring adds to memory at its peak, in MiB:"
    yield f"{scored} episodes."


def memory(measured: Path) -> Iterator[str]:
    """Peaks, and what part of TRL's they are."""
    if not (measured / "memory.json").is_file():
        yield "Not measured yet."
        return
    content: dict[str, float] = _read(measured / "memory.json")
    peers = [name for name in content if "TRL" in name]
    yield "Peak of a whole process, loading and libraries included, over two PPO steps of 8"
    yield "episodes of 16 + 16 tokens in micro-batches of 2, on SmolLM2-135M's shape with"
    yield "an unembedding of its own."
    yield ""
    yield "| | MiB |" + "".join(f" of {name} |" for name in peers)
    yield "|---" * (2 + len(peers)) + "|"
    for name, mib in content.items():
        parts = "".join(f" {mib / content[peer]:.2f} |" for peer in peers)
        yield f"| {name} | {mib:,.0f} |{parts}"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main(measured: Path) -> None:
    """Write the page and its figures."""
    content = _read(measured / "benchmark.json")
    page = PAGE.read_text(encoding="utf-8").format(
        **content["about"],
        pairs=content["cases"][0]["pairs"],
        cases="\n".join(cases(measured)),
        arithmetic="\n".join(arithmetic(measured)),
        growth="\n".join(growth(measured)),
        memory="\n".join(memory(measured)),
    )
    (DOCS / "performance.md").write_text(page, encoding="utf-8")
    for name in ("benchmark.svg", "growth.svg"):
        if (measured / name).is_file():
            shutil.copy(measured / name, DOCS / name)
    print(DOCS / "performance.md")


if __name__ == "__main__":
    typer.run(main)
