"""How many texts a stage reads and how long they are: read from the data where it is there.

Where it is not, the paper's counts and lengths stand in (Ouyang et al. 2022, section 3.2 and
appendix A), and whoever reads the numbers is told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    assumed: bool = False  # the paper's, for want of the data


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of every data set that a stage reads; a demonstration is its prompt and response."""

    demonstrations: Texts
    responses: Texts  # of the demonstrations: what outputs are expected to be like
    ranking_prompts: Texts
    ppo_prompts: Texts


# Appendix A: tables 6, 9 and 10. The longest are the limits of appendix C.
PAPER = Lengths(
    demonstrations=Texts(12_725, 480.0, 2048, assumed=True),
    responses=Texts(12_725, 72.0, 1024, assumed=True),
    ranking_prompts=Texts(33_207, 199.0, 1024, assumed=True),
    ppo_prompts=Texts(31_144, 166.0, 1024, assumed=True),
)
Row = tuple[Demonstration | Prompt | None, str | None]  # what is asked, the response


def lengths(config: ExperimentConfig) -> Lengths:
    """Lengths of the experiment's data sets, with the base's tokenizer where it is here."""
    tokenizer = _tokenizer(config)
    match config.data:
        case QuickstartSource():
            return _quickstart(config.data, config.seed, tokenizer)
        case FileSource():
            return _files(config.data, tokenizer)


def _quickstart(
    source: QuickstartSource, seed: int, tokenizer: PreTrainedTokenizerBase | None
) -> Lengths:
    from pipeline.quickstart.data import quickstart_data

    made = quickstart_data(source.sizes, seed)
    told: list[Row] = [(one, one.response) for one in made.demonstrations]
    ranking: list[Row] = [(one, None) for one in made.ranking_prompts]
    asked: list[Row] = [(one, None) for one in made.ppo_prompts]
    return Lengths(
        _texts(told, len(told), tokenizer),
        _texts([(None, said) for _, said in told], len(told), tokenizer),
        _texts(ranking, len(ranking), tokenizer),
        _texts(asked, len(asked), tokenizer),
    )


def _files(source: FileSource, tokenizer: PreTrainedTokenizerBase | None) -> Lengths:
    told = _rows(source.demonstrations, load_demonstrations)
    ranking = _rows(source.ranking_prompts, load_prompts)
    asked = _rows(source.ppo_prompts or source.ranking_prompts, load_prompts)
    said: list[Row] = [(None, response) for _, response in told]
    return Lengths(
        _texts(told, len(told), tokenizer) if told else PAPER.demonstrations,
        _texts(said, len(said), tokenizer) if said else PAPER.responses,
        _texts(ranking, len(ranking), tokenizer) if ranking else PAPER.ranking_prompts,
        _texts(asked, len(asked), tokenizer) if asked else PAPER.ppo_prompts,
    )


def _rows(
    place: str, load: Callable[[str], Sequence[Demonstration]] | Callable[[str], Sequence[Prompt]]
) -> list[Row]:
    """The rows of a file; none where it is not here, or is not yet what the data stage reads."""
    if not Path(place).is_file():
        return []
    try:
        records = load(place)
    except ValueError:
        return []
    return [(one, one.response if isinstance(one, Demonstration) else None) for one in records]


def _texts(rows: Sequence[Row], count: int, tokenizer: PreTrainedTokenizerBase | None) -> Texts:
    counts = [_tokens(row, tokenizer) for row in rows[:MEASURED]]
    return Texts(count, sum(counts) / len(counts), max(counts))


def _tokens(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> int:
    asked, response = row
    if tokenizer is None:
        before = [] if asked is None else [*(turn.content for turn in asked.history), asked.prompt]
        context = None if asked is None else asked.context
        written = sum(map(len, [*before, context or "", response or ""]))
        return max(1, round(written / CHARACTERS))
    said = [] if response is None else response_ids(tokenizer, response)
    if asked is None:
        return len(said)
    return len(said) + len(conversation_ids(tokenizer, asked))


def _tokenizer(config: ExperimentConfig) -> PreTrainedTokenizerBase | None:
    base = model_source(config.model)
    return load_tokenizer(base) if Path(base).is_dir() else None
