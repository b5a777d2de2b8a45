"""Scoring holds arrays, not rows: ten times the rows take hardly more memory."""

import csv
import random
import subprocess
import sys
from pathlib import Path

import pytest

PEAK = """
import resource, sys
from pathlib import Path
from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.external.score import score_file
place = Path(sys.argv[1])
config = EvaluationConfig(resamples=400, sign_flips=400)  # a whole portion of draws in both
results = score_file([place], {}, out=place.parent / place.stem, config=config)
assert {cell.n for cell in results.cells if cell.quantity.suite == "responses"} == {int(place.stem)}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_megabytes(folder: Path, prompts: int) -> float:
    draw, words = random.Random(0), ("calm", "river", "runs", "by", "the", "old", "stone", "mill")
    path = folder / f"{prompts}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["model", "prompt", "completion"])
        for i in range(prompts):
            prompt = " ".join([f"prompt {i:06d}", *draw.choices(words, k=20)])
            out.writerows([m, prompt, " ".join(draw.choices(words, k=40))] for m in "ab")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 1024


@pytest.mark.slow
def test_ten_times_the_rows_take_hardly_more_memory(tmp_path: Path):
    small, large = (peak_megabytes(tmp_path, prompts) for prompts in (2_500, 25_000))
    print(f"5 000 rows: {small:.0f} MB, 50 000 rows: {large:.0f} MB")
    assert large - small < 30
