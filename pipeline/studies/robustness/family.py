"""Train one family with one seed and let it answer both domains; what is there is not done again.

FAMILY/seed-S/samples.jsonl   answers to the prompts of both domains with their scores; k is S
FAMILY/seed-S/about.json      parameters that moved, parameters in all, seconds
FAMILY/seed-S/settings.json   what all of it depends on; under other settings it is done again
"""

import dataclasses
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipeline.evaluation.generate import generate_completions
from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.scorers.gold import GoldScorer
from pipeline.evaluation.scorers.scorer import Scorer, scored
from pipeline.runs.manifest import content_hash, named_inputs
from pipeline.studies.robustness.config import RobustnessConfig
from pipeline.studies.robustness.domains import Domains
from pipeline.studies.robustness.references import LIKELIHOOD, RougeL, reference_nats
from reward_models.atomic_files import write_jsonl
from reward_models.records import read_records
from stages.config import without_external_names
from stages.models import adapt, load_policy, load_tokenizer, trainable_parameters
from stages.progress import Report
from stages.sft.train import train_sft

BASE = "base"  # the model before any training, answered for comparison
IN, OUT = "in domain", "out of domain"
SAMPLES, ABOUT, SETTINGS = "samples.jsonl", "about.json", "settings.json"


@dataclass(frozen=True, slots=True)
class Trained:
    """What one family cost."""

    family: str
    seed: int
    trainable: int  # parameters that moved
    parameters: int  # of the base
    seconds: float

    @property
    def share(self) -> float:
        """Of the base's parameters."""
        return self.trainable / self.parameters


def family_rows(
    config: RobustnessConfig,
    name: str,
    seed: int,
    *,
    base: str | Path,
    domains: Domains,
    out: Path,
    report: Report,
) -> tuple[Trained, list[Completion]]:
    """The family's answers and cost, from the folder where they are there already."""
    _prepare(out, _settings(config, name, seed))
    if (out / SAMPLES).is_file():
        told = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        return Trained(**told), read_records(out / SAMPLES, Completion)
    began = time.monotonic()
    moved, source = (0, base) if name == BASE else (_moved(config, name, base), out / "model")
    if name != BASE:
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
    trained = Trained(name, seed, moved, size, seconds)
    rows = _answers(config, name, seed, source, domains)
    (out / ABOUT).write_text(json.dumps(asdict(trained), indent=2) + "\n", encoding="utf-8")
    write_jsonl(out / SAMPLES, (row.to_json() for row in rows))
    if not config.keep_models:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        shutil.rmtree(out / "model", ignore_errors=True)
    return trained, rows


def _settings(config: RobustnessConfig, name: str, seed: int) -> str:
    """Everything on which the answers depend, as text."""
    told = {part: without_external_names(config)[part] for part in ("data", "sampling")}
    trained = None if name == BASE else config.stage(name).model_dump(mode="json")
    given = {key: content_hash(source) for key, source in named_inputs(config).items()}
    return json.dumps({**told, "sft": trained, "seed": seed, "inputs": given}, indent=1) + "\n"


def _prepare(out: Path, settings: str) -> None:
    """The folder, emptied of what other settings left in it."""
    path = out / SETTINGS
    if not path.is_file() or path.read_text(encoding="utf-8") != settings:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        path.write_text(settings, encoding="utf-8")


def _moved(config: RobustnessConfig, name: str, base: str | Path) -> int:
    """How many numbers this family trains on this base."""
    with torch.random.fork_rng():
        return trainable_parameters(adapt(load_policy(base), config.families[name].adaptation))


def _answers(
    config: RobustnessConfig, name: str, seed: int, source: str | Path, domains: Domains
) -> list[Completion]:
    rows = []
    for domain, prompts in ((IN, domains.in_domain), (OUT, domains.out_of_domain)):
        rows += generate_completions(
            {name: source}, prompts, suite=domain, sampling=config.sampling, seed=seed
        )
    scorers: list[Scorer] = [GoldScorer(), RougeL()]
    rows = scored([dataclasses.replace(row, k=seed) for row in rows], scorers)
    nats = reference_nats(load_policy(source), load_tokenizer(source), rows)
    return [
        dataclasses.replace(row, scores={**row.scores, LIKELIHOOD: found})
        for row, found in zip(rows, nats, strict=True)
    ]
