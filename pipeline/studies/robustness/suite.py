"""The robustness suite: families trained on one domain, tested in it and outside it.

robustness.json   a row a family: share of parameters, every measure in both domains with intervals,
                  paired differences from full fine-tuning, and what leaving the domain cost
robustness.html   the same as a figure and a table

FAMILY/seed-S/samples.jsonl   answers to the prompts of both domains with their scores; k is S
FAMILY/seed-S/about.json      trained parameters, parameters in all, seconds
FAMILY/seed-S/settings.json   everything they depend on; under other settings they are made anew

A prompt's answers under several seeds are averaged first; prompts are resampled.

Answers are compared with references by ROUGE-L, the F measure of the longest common subsequence
(Lin 2004, by rouge-score, with stemming off), the best over a prompt's references; by BLEU, the
corpus's (Papineni et al. 2002, by sacrebleu); and by the likelihood, the nats per token that the
policy needs for the first reference.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.generate import generate_completions
from pipeline.evaluation.samples.records import Completion, ScoredRows, Scores
from pipeline.evaluation.samples.tables import (
    Cell,
    Comparison,
    Quantity,
    Resampling,
    cells,
    comparisons,
    corrected,
    tabulate,
)
from pipeline.evaluation.scorers.gold import GOLD, GoldScorer
from pipeline.evaluation.scorers.scorer import Scorer, scored
from pipeline.runs.display import Display
from pipeline.runs.manifest import content_hash, model_source, named_inputs
from pipeline.studies.robustness.config import FULL, REFERENCES, Domains, RobustnessConfig
from reward_models.atomic_files import empty_unless_same, write_json, write_jsonl
from reward_models.records import Demonstration, read_records
from stages.config import without_external_names
from stages.data.supervised import encode, response_loss
from stages.models import adapt, load_policy, load_tokenizer, trainable_parameters
from stages.precision import inference_precision, inference_weights
from stages.progress import Report, Step
from stages.sft.train import train_sft

BASE = "base"  # the model before any training, for comparison
IN, OUT = "in domain", "out of domain"
SAMPLES, ABOUT, SETTINGS = "samples.jsonl", "about.json", "settings.json"
ROUGE, LIKELIHOOD = "rouge-score", "the policy itself"
MEASURES = (
    Quantity(GOLD, "correct", scorer=GOLD, better="higher"),
    Quantity(ROUGE, "rouge_l", scorer=ROUGE, better="higher"),
    Quantity(LIKELIHOOD, "nats_per_token", scorer=LIKELIHOOD, better="lower"),
)
BLEU_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Trained:
    """The cost of one family."""

    family: str
    seed: int
    trainable: int  # parameters
    parameters: int  # of the base
    seconds: float

    @property
    def share(self) -> float:
        """The share of the base's parameters that is trained."""
        return self.trainable / self.parameters


@dataclass(frozen=True, slots=True)
class Robustness:
    """The suite's results; `cells` and `differences` name a domain by their quantity's suite."""

    trained: Sequence[Trained]
    cells: Sequence[Cell]
    differences: Sequence[Comparison]  # from full fine-tuning, Holm-corrected by measure
    bleu: dict[str, dict[str, tuple[float, tuple[float, float]]]]  # by family and domain

    def cell(self, family: str, domain: str, metric: str) -> Cell | None:
        """Return the cell of that name, or None."""
        for cell in self.cells:
            if (cell.model, cell.quantity.suite, cell.quantity.metric) == (family, domain, metric):
                return cell
        return None

    def share(self, family: str) -> float:
        """Return the share of the base's parameters that the family trains."""
        return next(one.share for one in self.trained if one.family == family)


def run_suite(config: RobustnessConfig, out: Path, display: Display) -> Robustness:
    """Train, answer, score; write out/robustness.json. Resumes where it was interrupted."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    domains = config.data.load()
    jobs = [(BASE, config.seeds[0]), *((n, s) for n in config.families for s in config.seeds)]
    trained, rows = [], []
    for number, (name, seed) in enumerate(jobs, 1):
        display.begin(name, f"seed {seed}, {number} of {len(jobs)}")
        folder = out / name / f"seed-{seed}"
        cost, answers = _family(config, name, seed, domains, folder, display.step)
        display.step(Step(number, len(jobs)))
        display.finish(f"{cost.share:.2%} of the parameters")
        trained.append(cost)
        rows += answers
    result = compared(config, trained, rows)
    _write(out / "robustness.json", config, result)
    return result


def compared(
    config: RobustnessConfig, trained: Sequence[Trained], rows: Sequence[Completion]
) -> Robustness:
    """Return cells, differences and BLEU of scored rows."""
    names = [BASE, *config.families]
    resampling = Resampling(config.resamples, config.sign_flips, 0)
    pairs = [(name, FULL) for name in names if name != FULL]
    columns = ScoredRows.of(rows)
    in_table, differences = list[Cell](), list[Comparison]()
    for measure in MEASURES:
        scorer, metric = measure.scorer, measure.metric
        for domain in (IN, OUT):
            of_domain = columns.of_suite(domain).judged(scorer, metric)
            if not len(of_domain):
                continue
            quantity = Quantity(domain, metric, "all", scorer, measure.better)
            table = tabulate(of_domain, quantity, of_domain.score(scorer, metric), names)
            in_table += cells(table, resampling)
            differences += comparisons(table, pairs, resampling)
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
    return Robustness(list(trained), in_table, corrected(differences), bleu)


def _family(
    config: RobustnessConfig, name: str, seed: int, domains: Domains, out: Path, report: Report
) -> tuple[Trained, list[Completion]]:
    """Train one family with one seed and let it answer; what is in the folder is not done again."""
    empty_unless_same(out, SETTINGS, _settings(config, name, seed))
    if (out / SAMPLES).is_file():
        cost = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        return Trained(**cost), read_records(out / SAMPLES, Completion)
    began = time.monotonic()
    source = base = model_source(config.model)
    trainable = 0
    if name != BASE:
        source = out / "model"
        with torch.random.fork_rng():
            adapted = adapt(load_policy(base), config.families[name].adaptation)
            trainable = trainable_parameters(adapted)
        train_sft(
            config.stage(name),
            base=base,
            demonstrations=domains.train,
            validation=domains.validation,
            reward_model=None,
            selection_prompts=(),
            out=out,
            seed=seed,
            report=report,
        )
    seconds = time.monotonic() - began
    size = sum(parameter.numel() for parameter in load_policy(base).parameters())
    trained = Trained(name, seed, trainable, size, seconds)
    rows = _answers(config, name, seed, source, domains)
    write_json(out / ABOUT, asdict(trained))
    write_jsonl(out / SAMPLES, (row.to_json() for row in rows))
    if not config.keep_models:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        shutil.rmtree(out / "model", ignore_errors=True)
    return trained, rows


def _settings(config: RobustnessConfig, name: str, seed: int) -> str:
    """Return everything on which the answers depend, as text."""
    settings = {part: without_external_names(config)[part] for part in ("data", "sampling")}
    settings["sft"] = None if name == BASE else config.stage(name).model_dump(mode="json")
    settings["seed"] = seed
    settings["inputs"] = {key: content_hash(one) for key, one in named_inputs(config).items()}
    return json.dumps(settings, indent=1) + "\n"


def _answers(
    config: RobustnessConfig, name: str, seed: int, source: str | Path, domains: Domains
) -> list[Completion]:
    rows = []
    with inference_precision(config.sft.precision):
        for domain, prompts in ((IN, domains.in_domain), (OUT, domains.out_of_domain)):
            rows += generate_completions(
                {name: source}, prompts, suite=domain, sampling=config.sampling, seed=seed
            )
        policy = load_policy(source, weights=inference_weights())
    scorers: list[Scorer] = [GoldScorer(), RougeL()]
    rows = scored([replace(row, k=seed) for row in rows], scorers)
    nats = reference_nats(policy, load_tokenizer(source), rows)
    return [
        replace(row, scores={**row.scores, LIKELIHOOD: scores})
        for row, scores in zip(rows, nats, strict=True)
    ]


def _write(path: Path, config: RobustnessConfig, result: Robustness) -> None:
    cells = [
        {
            "family": cell.model,
            "domain": cell.quantity.suite,
            "metric": cell.quantity.metric,
            "value": cell.value,
            "ci95": list(cell.ci95),
            "n": cell.n,
        }
        for cell in result.cells
    ]
    differences = [
        {
            "family": one.a,
            "domain": one.quantity.suite,
            "metric": one.quantity.metric,
            "difference": one.diff,
            "ci95": list(one.ci95),
            "p_holm": one.p_holm,
            "n": one.n,
        }
        for one in result.differences
    ]
    content = {
        "model": config.model,
        "seeds": config.seeds,
        "trained": [asdict(one) | {"share": one.share} for one in result.trained],
        "cells": cells,
        "differences_from_full": differences,
        "bleu": result.bleu,
        "config": config.model_dump(mode="json"),
    }
    write_json(path, content)


class RougeL:
    """Scores rows whose prompts have references; 0 to 1."""

    name = ROUGE
    threshold = None
    sha256 = ""

    def __init__(self) -> None:
        from importlib.metadata import version

        from rouge_score.rouge_scorer import RougeScorer

        self.version = version("rouge-score")
        self._scorer = RougeScorer(["rougeL"])

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return `rouge_l` of each row."""
        return [
            {"rouge_l": self._scorer.score_multi(_texts(row), row.completion)["rougeL"].fmeasure}
            for row in rows
        ]


def corpus_bleu(
    rows: Sequence[Completion], *, resamples: int, seed: int
) -> tuple[float, tuple[float, float]]:
    """Return BLEU of all rows together, 0 to 100, with a 95 % interval over resampled rows.

    BLEU is a function of n-gram counts that are summed over rows, so resampling sums them anew.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(effective_order=True)  # concerns single rows, whose own score is not used
    scores = [metric.sentence_score(row.completion, _texts(row)) for row in rows]
    order = len(scores[0].counts)
    counts_NC = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in scores])

    def bleu(sum_C: NDArray[np.int64]) -> float:
        sums = sum_C.tolist()
        lengths = {"sys_len": sums[-2], "ref_len": sums[-1]}
        matches, totals = sums[:order], sums[order : 2 * order]
        return float(BLEU.compute_bleu(matches, totals, smooth_method="exp", **lengths).score)

    rng = np.random.default_rng(seed)
    num = len(rows)
    drawn = [bleu(counts_NC[rng.integers(0, num, num)].sum(0)) for _ in range(resamples)]
    value = bleu(counts_NC.sum(0))
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (value, value)
    return value, (float(low), float(high))


def reference_nats(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Completion]
) -> list[Scores]:
    """Return nats per token of each row's first reference after its prompt."""
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    scores: list[Scores] = []
    for row in rows:
        first = Demonstration(row.prompt, _texts(row)[0], context=row.context, history=row.history)
        loss = response_loss(model, [encode(tokenizer, first)], pad, batch_size=1)
        scores.append({"nats_per_token": loss})
    return scores


def _texts(row: Completion) -> list[str]:
    return [str(text) for text in row.prompt_extra[REFERENCES]]
