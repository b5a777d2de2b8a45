"""The robustness suite: families trained on one domain, tested in it and outside it.

robustness.json   a row a family: share of parameters, every measure in both domains with intervals,
                  paired differences from full fine-tuning, and what leaving the domain cost
robustness.html   the same as a figure and a table

A prompt's answers under several seeds are averaged first; prompts are resampled.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluation.samples.comparisons import Comparison, comparisons, corrected
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.samples.tables import Cell, Quantity, Resampling, cells, tabulate
from pipeline.evaluation.scorers.gold import GOLD
from pipeline.runs.display import Display
from pipeline.runs.manifest import model_source
from pipeline.studies.robustness.config import FULL, RobustnessConfig
from pipeline.studies.robustness.domains import load_domains
from pipeline.studies.robustness.family import BASE, IN, OUT, Trained, family_rows
from pipeline.studies.robustness.references import LIKELIHOOD, ROUGE, corpus_bleu
from stages.progress import Step

MEASURES = (
    Quantity(GOLD, "correct", scorer=GOLD, better="higher"),
    Quantity(ROUGE, "rouge_l", scorer=ROUGE, better="higher"),
    Quantity(LIKELIHOOD, "nats_per_token", scorer=LIKELIHOOD, better="lower"),
)
BLEU_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Robustness:
    """What the suite found; `cells` and `differences` name a domain by their quantity's suite."""

    trained: Sequence[Trained]
    cells: Sequence[Cell]
    differences: Sequence[Comparison]  # from full fine-tuning, Holm-corrected by measure
    bleu: dict[str, dict[str, tuple[float, tuple[float, float]]]]  # by family and domain

    def cell(self, family: str, domain: str, metric: str) -> Cell | None:
        """The one of that name, or None."""
        for cell in self.cells:
            if (cell.model, cell.quantity.suite, cell.quantity.metric) == (family, domain, metric):
                return cell
        return None

    def share(self, family: str) -> float:
        """The share of the base's parameters that the family moves."""
        return next(one.share for one in self.trained if one.family == family)


def run_suite(config: RobustnessConfig, out: Path, shown: Display) -> Robustness:
    """Train, answer, judge; write out/robustness.json. Goes on where it was interrupted."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    domains = load_domains(config.data, 0)
    base = model_source(config.model)
    names = [BASE, *config.families]
    jobs = [(BASE, config.seeds[0]), *((n, s) for n in config.families for s in config.seeds)]
    trained, rows = [], []
    for place, (name, seed) in enumerate(jobs):
        shown.begin(name, f"seed {seed}, {place + 1} of {len(jobs)}")
        cost, found = family_rows(
            config, name, seed, base=base, domains=domains, out=out / name / f"seed-{seed}",
            report=shown.step,
        )  # fmt: skip
        shown.step(Step(place + 1, len(jobs)))
        shown.finish(f"{cost.share:.2%} of the parameters")
        trained.append(cost)
        rows += found
    result = judged(config, names, trained, rows)
    _write(out / "robustness.json", config, result)
    return result


def judged(
    config: RobustnessConfig,
    names: Sequence[str],
    trained: Sequence[Trained],
    rows: Sequence[Completion],
) -> Robustness:
    """Cells, differences and BLEU of scored rows."""
    resampling = Resampling(config.resamples, config.sign_flips, 0)
    pairs = [(name, FULL) for name in names if name != FULL]
    found, compared = list[Cell](), list[Comparison]()
    for measure in MEASURES:
        for domain in (IN, OUT):
            mine = [
                row
                for row in rows
                if row.suite == domain and row.has(measure.scorer, measure.metric)
            ]
            if not mine:
                continue
            table = tabulate(
                mine,
                Quantity(domain, measure.metric, "all", measure.scorer, measure.better),
                partial(_score, measure),
                names,
            )
            found += cells(table, resampling)
            compared += comparisons(table, pairs, resampling)
    bleu = {
        name: {
            domain: corpus_bleu(
                [row for row in rows if (row.model, row.suite) == (name, domain)],
                resamples=BLEU_RESAMPLES,
                seed=0,
            )
            for domain in (IN, OUT)
        }
        for name in names
    }
    return Robustness(list(trained), found, corrected(compared), bleu)


def _score(measure: Quantity, row: Completion) -> float | None:
    return row.score(measure.scorer, measure.metric)


def _write(path: Path, config: RobustnessConfig, found: Robustness) -> None:
    written: dict[str, Any] = {
        "model": config.model,
        "seeds": config.seeds,
        "trained": [asdict(one) | {"share": one.share} for one in found.trained],
        "cells": [
            {
                "family": cell.model,
                "domain": cell.quantity.suite,
                "metric": cell.quantity.metric,
                "value": cell.value,
                "ci95": list(cell.ci95),
                "n": cell.n,
            }
            for cell in found.cells
        ],
        "differences_from_full": [
            {
                "family": one.a,
                "domain": one.quantity.suite,
                "metric": one.quantity.metric,
                "difference": one.diff,
                "ci95": list(one.ci95),
                "p_holm": one.p_holm,
                "n": one.n,
            }
            for one in found.differences
        ],
        "bleu": found.bleu,
        "config": config.model_dump(mode="json"),
    }
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)
