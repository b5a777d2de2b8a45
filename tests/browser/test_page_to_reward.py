"""Rankings made on the page train the reward model: page, store, `rlhf reward`, accuracy."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from labeling_ui.reports.quality import report
from labeling_ui.store.store import Store
from pipeline.config.labeling import HumanAnnotators
from pipeline.labeling.settings import STORE, model_scores
from reward_models.atomic_files import write_jsonl
from reward_models.records import RankingTask, Response

ROOT = Path(__file__).parents[2]
NUM_TASKS = 16
# What the annotator likes, best first; nothing but the order on the page tells it to anyone.
KINDS = (
    "Why would you even ask that?",
    "The text does not say.",
    "{name} built the {thing}.",
    "{name} built the {thing}. {name} built the {thing}. {name} built the {thing}.",
)
NAMES = ("Mara", "Tolk", "Orrin", "Ada", "Ben", "Cyd")
THINGS = ("harbour", "bridge", "tower", "mill")
CONFIG = """
name: own
threads: 1
data:
  kind: quickstart
  sizes: {{demonstrations: 16, ranking_prompts: 16, ppo_prompts: 16, validation_prompts: 16,
          test_prompts: 16, toxicity_prompts: 16, pretraining_texts: 16, held_out_texts: 16}}
labeling: {{kind: human, tasks: {folder}/tasks.jsonl, form: {folder}/form.yaml, port: 0}}
reward_base: base
reward: {{epochs: 3, learning_rate: 1.0e-3, prompts_per_batch: 4, held_out: 0.25, max_tokens: 96}}
"""


def text_of(kind: int, number: int) -> str:
    name, thing = NAMES[number % len(NAMES)], THINGS[number % len(THINGS)]
    return KINDS[kind].format(name=name, thing=thing)


def task_of(number: int) -> RankingTask:
    responses = tuple(Response(f"r{kind}", text_of(kind, number), "m", {}) for kind in range(4))
    prompt = f"Who built the {THINGS[number % len(THINGS)]} number {number}?"
    return RankingTask(f"t{number}", prompt, responses)


def command(verb: str, folder: Path) -> list[str]:
    run = [verb, str(folder / "own.yaml"), "--out", str(folder / "run")]
    return [sys.executable, "-c", "from pipeline.cli.app import main; main()", *run]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@contextmanager
def labeling(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`rlhf label`, and the address that it prints."""
    process = subprocess.Popen(
        command("label", folder), stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.put(line)
        lines.put("")

    threading.Thread(target=listen, daemon=True).start()
    output = ""
    try:
        while "Labeling room: " not in output:
            line = lines.get(timeout=120)
            output += line
            assert line, output
        yield output.split("Labeling room: ")[1].split()[0], process
    finally:
        process.kill()


def rank_on_the_page(page: Any, how_many: int) -> None:
    """Read the outputs where they are shown, and put them in order by their keys."""
    prefixes = ["Why", "The text"]
    for number in range(how_many):
        page.wait_for_selector(".card .text")
        for text in page.locator(".card .text").all_text_contents():
            known = [i for i, prefix in enumerate(prefixes) if text.startswith(prefix)]
            kind = known[0] if known else 2 + (text.count("built") > 1)
            page.keyboard.press(str(kind + 1))
        page.evaluate("document.querySelector('.toast').hidden = true")
        page.keyboard.press("Control+Enter")
        if number < how_many - 1:
            page.wait_for_selector(".toast:not([hidden])")


def test_rankings_made_on_the_page_train_the_reward_model(browser: Any, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "tasks.jsonl", (task_of(i).to_json() for i in range(NUM_TASKS)))
    (tmp_path / "form.yaml").write_text("name: order only\n")
    (tmp_path / "own.yaml").write_text(CONFIG.format(folder=tmp_path))
    with labeling(tmp_path) as (address, room):
        page = browser.new_context(locale="en-US").new_page()
        page.set_default_timeout(45_000)
        page.goto(address)
        page.fill("#name", "ada")
        page.click("button")
        rank_on_the_page(page, NUM_TASKS)
        assert room.wait(timeout=60) == 0  # it closes by itself once all is ranked
        page.context.close()
    trained = subprocess.run(
        command("reward", tmp_path),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        check=False,
    )
    assert trained.returncode == 0, trained.stderr
    reward = tmp_path / "run/reward"
    assert json.loads((reward / "manifest.json").read_text())["labels"] == ["human"]
    held_out = json.loads((reward / "held_out.json").read_text())
    assert (held_out["n_prompts"], held_out["n_pairs"]) == (4, 24)
    assert held_out["pair_accuracy"] >= 0.9
    with closing(Store(tmp_path / "run" / STORE)) as store:
        tasks, rankings = store.tasks(), store.rankings()
    again = HumanAnnotators(kind="human", reward_model=str(reward / "model"))
    scores = model_scores(again, tasks)  # what the owner's page is given in the next round
    rng = np.random.default_rng(0)
    (ada,) = report(tasks, rankings, gold={}, rng=rng, scores=scores)["annotators"]
    assert (ada["name"], ada["model"]["num_pairs"]) == ("ada", 6 * NUM_TASKS)
    assert ada["model"]["value"] >= 0.9
