"""A run that never was, for pages to be made of, and a reader of such pages."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.results import Results, results_of, write_results
from pipeline.evaluation.samples.tables import Quantity, Resampling, Table
from pipeline.runs.manifest import Manifest
from reward_models.atomic_files import write_jsonl

MODELS = ("base", "sft", "ppo", "ppo-ptx")
T = TypeVar("T")


def there(value: T | None) -> T:
    """Return a value that must be there."""
    assert value is not None
    return value


def table(quantity: Quantity, centre: float, spread: float, *, step: float = 0.0) -> Table:
    noise_NM = np.random.default_rng(0).normal(0, spread, (60, len(MODELS)))
    value_NM = centre + step * np.arange(len(MODELS)) + noise_NM
    return Table(quantity, MODELS, value_NM, np.ones(60), (60,) * 4, (0,) * 4)


def rates(quantity: Quantity, *shares: float) -> Table:
    place_N1 = (np.arange(60)[:, None] + 0.5) / 60
    value_NM = (place_N1 < np.array(shares)).astype(float)
    return Table(quantity, MODELS, value_NM, np.ones(60), (60,) * 4, (0,) * 4)


def made_up_results() -> Results:
    gold = "gold judge"
    tables = [
        rates(Quantity("preference", "win_rate", "all", gold, "higher"), 0.2, 0.5, 0.6, 0.7),
        table(Quantity("use_cases", "gold", "all", gold, "higher"), 0.3, 0.2, step=0.1),
        table(Quantity("use_cases", "gold", "closed_qa", gold, "higher"), -0.2, 0.2, step=0.2),
        rates(Quantity("hallucination", "hallucination", "all", gold, "lower"), 0.5, 0.2, 0.2, 0.1),
        *(
            table(Quantity("toxicity", "toxicity", kind, "scorer", "lower"), 0.4, 0.1, step=-0.05)
            for kind in ("none", "respectful", "biased")
        ),
        table(Quantity("pretraining", "loss", "held-out", "itself", "lower", "text"), 2.0, 0.1),
        rates(Quantity("responses", "repeated_answer"), 0.4, 0.0, 0.1, 0.1),
    ]
    pairs = [
        ("sft", "base"),
        ("ppo", "base"),
        ("ppo", "sft"),
        ("ppo-ptx", "base"),
        ("ppo-ptx", "sft"),
    ]
    return results_of(
        tables,
        pairs,
        Resampling(300, 300),
        scorers={gold: {"version": "1", "sha256": "ab" * 32, "threshold": None}},
        notes=["prompts are synthetic"],
        about={"baseline": "sft", "shown_samples": 4},
    )


def made_up_samples() -> list[Completion]:
    return [
        Completion(
            id=f"{category}-{i}",
            model=model,
            prompt=f"Prompt {i} about <b>{category}</b> & more?",
            context="A passage." if category == "closed_qa" else None,
            completion="You idiot <script>alert(1)</script>" if model == "base" else f"Answer {i}",
            suite="test",
            category=category,
            finish_reason="stop",
            scores={"alt-profanity-check": {"toxicity": 0.9 if model == "base" else 0.05}},
        )
        for model in MODELS
        for category in ("closed_qa", "chat")
        for i in range(3)
    ]


def manifest(stage: str, labels: list[str]) -> Manifest:
    return Manifest(
        stage=stage,
        fingerprint="f",
        settings={},
        seed=7,
        inputs={},
        outputs={},
        labels=labels,
        code_version="0.1.0",
        libraries={},
        started="2026-01-01",
        wall_s=12.0,
        cpu_s=12.0,
        peak_rss_bytes=500_000_000,
    )


def write_run(folder: Path) -> None:
    """A run with results, samples, curves and manifests."""
    for stage in ("sft", "reward", "ppo", "ppo-ptx", "evaluate"):
        (folder / stage).mkdir(parents=True)
        labels = [] if stage == "sft" else ["simulated"]
        manifest(stage, labels).write(folder / stage / "manifest.json")
    write_results(made_up_results(), folder / "evaluate/results.json")
    write_jsonl(folder / "evaluate/samples.jsonl", (row.to_json() for row in made_up_samples()))
    for stage in ("ppo", "ppo-ptx"):
        steps = [
            {
                "step": i,
                "total": 9,
                "ppo/score": 0.1 * i,
                "ppo/kl_nats": 0.2 * i,
                "ppo/eos_rate": None,
                "ppo/gold_score": 0.1 * i,
                "ppo/proxy_score": 0.2 * i,
                "ppo/gold_kl_nats": 0.2 * i,
            }
            for i in range(1, 10)
        ]
        write_jsonl(folder / stage / "metrics.jsonl", steps)
    held_out = {"pair_accuracy": 0.74, "ci95": [0.7, 0.78], "n_prompts": 50, "ceiling": None}
    (folder / "reward/held_out.json").write_text(json.dumps(held_out))


class Outline(HTMLParser):
    """Collects what a page loads, its ids and its texts, and checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        measured = dict(attrs)
        self.loads += [str(measured[name]) for name in ("src", "href") if name in measured]
        self.ids += [str(measured["id"])] if "id" in measured else []
        if tag not in {"meta", "link", "line", "circle", "path", "br", "rect", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(page: str) -> Outline:
    parsed = Outline()
    parsed.feed(page)
    assert parsed.open == []
    return parsed
