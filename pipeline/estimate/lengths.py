"""The number and the lengths of the texts that a stage reads, from the data where they are here.

Where they are not, the paper's counts and lengths stand in (Ouyang et al. 2022, section 3.2 and
appendix A), and the page says so.
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
    """The number of texts, and the tokens of the mean one and the longest."""

    count: int
    mean: float
    longest: int
    assumed: bool = False  # the paper's, for want of the data


@dataclass(frozen=True, slots=True)
class Lengths:
    """The texts of every data set that a stage reads; a demonstration is prompt and response."""

    demonstrations: Texts
    responses: Texts  # of the demonstrations, as outputs are expected to be
    ranking_prompts: Texts
    ppo_prompts: Texts


# Appendix A: tables 6, 9 and 10. The longest are the limits of appendix C.
PAPER = Lengths(
    demonstrations=Texts(12_725, 480.0, 2048, assumed=True),
    responses=Texts(12_725, 72.0, 1024, assumed=True),
    ranking_prompts=Texts(33_207, 199.0, 1024, assumed=True),
    ppo_prompts=Texts(31_144, 166.0, 1024, assumed=True),
)
Row = tuple[Demonstration | Prompt | None, str | None]  # a prompt, a response


def text_lengths(config: ExperimentConfig) -> Lengths:
    """Return the lengths of the experiment's data, by the base's tokenizer where it is here."""
    base = model_source(config.model)
    tokenizer = load_tokenizer(base) if Path(base).is_dir() else None
    match config.data:
        case QuickstartSource() as source:
            from pipeline.quickstart.data import quickstart_data

            made = quickstart_data(source.sizes, config.seed)
            demonstrations = _rows(made.demonstrations)
            ranking, ppo = _rows(made.ranking_prompts), _rows(made.ppo_prompts)
        case FileSource() as source:
            demonstrations = _read(source.demonstrations, load_demonstrations)
            ranking = _read(source.ranking_prompts, load_prompts)
            ppo = _read(source.ppo_prompts or source.ranking_prompts, load_prompts)
    responses: list[Row] = [(None, response) for _, response in demonstrations]

    def measure(rows: list[Row], assumed: Texts) -> Texts:
        counts = [_tokens(row, tokenizer) for row in rows[:MEASURED]]
        return Texts(len(rows), sum(counts) / len(counts), max(counts)) if counts else assumed

    return Lengths(
        measure(demonstrations, PAPER.demonstrations),
        measure(responses, PAPER.responses),
        measure(ranking, PAPER.ranking_prompts),
        measure(ppo, PAPER.ppo_prompts),
    )


def _rows(records: Sequence[Demonstration] | Sequence[Prompt]) -> list[Row]:
    return [
        (record, record.response if isinstance(record, Demonstration) else None)
        for record in records
    ]


def _read(
    file: str, load: Callable[[str], Sequence[Demonstration]] | Callable[[str], Sequence[Prompt]]
) -> list[Row]:
    """Return the rows of a file; none where it is not here, or not yet as the data stage wants."""
    if not Path(file).is_file():
        return []
    try:
        return _rows(load(file))
    except ValueError:
        return []


def _tokens(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> int:
    prompt, response = row
    if tokenizer is None:
        texts = (
            [] if prompt is None else [*(turn.content for turn in prompt.history), prompt.prompt]
        )
        context = None if prompt is None else prompt.context
        characters = sum(map(len, [*texts, context or "", response or ""]))
        return max(1, round(characters / CHARACTERS))
    length = 0 if response is None else len(response_ids(tokenizer, response))
    return length + (0 if prompt is None else len(conversation_ids(tokenizer, prompt)))
