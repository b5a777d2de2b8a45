"""The number and lengths of each stage's texts, from the data where it is on this machine.

Otherwise the paper's counts and lengths are used (Ouyang et al. 2022, section 3.2 and appendix A),
and the output says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pipeline.config.experiment import ExperimentConfig, FileSource, QuickstartSource
from pipeline.runs.manifest import model_source
from reward_models.records import Demonstration, Prompt
from stages.data.demonstrations import load_demonstrations, load_prompts
from stages.data.template import conversation_ids, response_ids
from stages.models import load_tokenizer

MEASURED = 1000  # texts of a file whose tokens are counted
CHARACTERS = 4.0  # a token, where the base's tokenizer is not on this machine


@dataclass(frozen=True, slots=True)
class Texts:
    """Number of texts, and tokens of the mean one and the longest."""

    count: int
    mean: float
    longest: int
    assumed: bool = False  # the paper's, because the data is not here


@dataclass(frozen=True, slots=True)
class Lengths:
    """The texts of each data set; a demonstration is its prompt and response."""

    demonstrations: Texts
    responses: Texts  # of the demonstrations, as an estimate of outputs
    ranking_prompts: Texts
    ppo_prompts: Texts


# Appendix A: tables 6, 9 and 10. The longest are the limits of appendix C.
PAPER = Lengths(
    demonstrations=Texts(12_725, 480.0, 2048, assumed=True),
    responses=Texts(12_725, 72.0, 1024, assumed=True),
    ranking_prompts=Texts(33_207, 199.0, 1024, assumed=True),
    ppo_prompts=Texts(31_144, 166.0, 1024, assumed=True),
)
Row = tuple[Demonstration | Prompt | None, str | None]  # prompt and response


def lengths(config: ExperimentConfig) -> Lengths:
    """Return the lengths of all data sets, by the base's tokenizer where it is here."""
    base = model_source(config.model)
    tokenizer = load_tokenizer(base) if Path(base).is_dir() else None
    match config.data:
        case QuickstartSource():
            return _quickstart(config.data, config.seed, tokenizer)
        case FileSource():
            return _files(config.data, tokenizer)


def _quickstart(
    source: QuickstartSource, seed: int, tokenizer: PreTrainedTokenizerBase | None
) -> Lengths:
    from pipeline.quickstart.data import quickstart_data

    data = quickstart_data(source.sizes, seed)
    return Lengths(
        _texts([(one, one.response) for one in data.demonstrations], tokenizer),
        _texts([(None, one.response) for one in data.demonstrations], tokenizer),
        _texts([(one, None) for one in data.ranking_prompts], tokenizer),
        _texts([(one, None) for one in data.ppo_prompts], tokenizer),
    )


def _files(source: FileSource, tokenizer: PreTrainedTokenizerBase | None) -> Lengths:
    demonstrations = _rows(source.demonstrations, load_demonstrations)
    responses: list[Row] = [(None, response) for _, response in demonstrations]
    ranking = _rows(source.ranking_prompts, load_prompts)
    ppo = _rows(source.ppo_prompts or source.ranking_prompts, load_prompts)
    ranked = _texts(ranking, tokenizer) if ranking else PAPER.ranking_prompts
    answered = _texts(ppo, tokenizer) if ppo else PAPER.ppo_prompts
    return Lengths(
        _texts(demonstrations, tokenizer) if demonstrations else PAPER.demonstrations,
        _texts(responses, tokenizer) if responses else PAPER.responses,
        _at_most(ranked, source.max_prompt_tokens),
        _at_most(answered, source.max_prompt_tokens),
    )


def _at_most(texts: Texts, tokens: int | None) -> Texts:
    """Return the texts where longer ones are left out."""
    if tokens is None:
        return texts
    return replace(texts, mean=min(texts.mean, tokens), longest=min(texts.longest, tokens))


def _rows(
    source: str | None,
    load: Callable[[str], Sequence[Demonstration]] | Callable[[str], Sequence[Prompt]],
) -> list[Row]:
    """Return the rows of a file; none where it is missing or not yet valid."""
    if source is None or not Path(source).is_file():
        return []
    try:
        records = load(source)
    except ValueError:
        return []
    return [(one, one.response if isinstance(one, Demonstration) else None) for one in records]


def _texts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase | None) -> Texts:
    counts = [_tokens(row, tokenizer) for row in rows[:MEASURED]]
    return Texts(len(rows), sum(counts) / len(counts), max(counts))


def _tokens(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> int:
    prompt, response = row
    if tokenizer is None:
        before = (
            [] if prompt is None else [*(turn.content for turn in prompt.history), prompt.prompt]
        )
        context = None if prompt is None else prompt.context
        written = sum(map(len, [*before, context or "", response or ""]))
        return max(1, round(written / CHARACTERS))
    ids = [] if response is None else response_ids(tokenizer, response)
    return len(ids) + (0 if prompt is None else len(conversation_ids(tokenizer, prompt)))
