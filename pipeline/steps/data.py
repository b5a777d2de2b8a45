"""The first stage of a run: every data set, from the quickstart's generator or the user's files.

They become JSON lines in one folder, so that all later stages read the same files and a run says by
hash what it was fed.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.experiment import ExperimentConfig, FileSource, Labeling, QuickstartSource
from pipeline.runs.manifest import Manifest, model_source, named_inputs
from pipeline.runs.splits import (
    OVERLAP,
    Row,
    held_out_digest,
    limited,
    report_overlaps,
    smallest,
    split,
    validation_prompts,
)
from pipeline.runs.stage import Source
from pipeline.steps.step import ExperimentStage
from reward_models.atomic_files import write_jsonl
from reward_models.records import Demonstration, Prompt, RankingTask, read_records
from stages.config import HUB, external_names, without_external_names
from stages.progress import Report

NUM_VALIDATION_PROMPTS = 200  # at most, taken from the PPO prompts where no set is given
VALIDATION_SHARE = 0.1
HELD_OUT_SHARE = 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data(ExperimentStage):
    """Write every data set of the experiment."""

    kind = "data"
    about = "data sets"
    work = "copying"

    def inputs(self) -> Mapping[str, Source]:
        inputs = named_inputs(self.config.data)
        if isinstance(self.config.data, FileSource):  # prompts ranked already do not validate
            ranked = named_inputs(self.config.labeling, "labeling")
            manifest = Manifest.read(self.folder / "data/manifest.json")
            before = {} if manifest is None else manifest.inputs
            if self.config.data.max_prompt_tokens is not None:
                inputs["base"] = self.base_model  # its tokenizer counts
            inputs |= {
                key: source
                for key, source in ranked.items()
                if key in before or isinstance(source, str) or source.exists()
            }
        return inputs

    def settings(self) -> Mapping[str, Any]:
        return {"seed": self.config.seed, "data": without_external_names(self.config.data)}

    def run(self, out: Path, report: Report) -> None:  # noqa: ARG002 - it is done in moments
        make_data(self.config, out)


def make_data(config: ExperimentConfig, folder: Path) -> None:
    """Write every data set of the experiment; raise ValueError on the first bad line of a file."""
    match config.data:
        case QuickstartSource():
            _from_quickstart(config.data, config.seed, folder)
        case FileSource():
            _from_files(config, config.data, folder)


def _from_quickstart(source: QuickstartSource, seed: int, folder: Path) -> None:
    from pipeline.quickstart.data import quickstart_data

    made = quickstart_data(source.sizes, seed)
    _write_demonstrations(folder, made.demonstrations, made.validation)
    _write_prompts(folder, "ranking", made.ranking_prompts)
    _write_prompts(folder, "ppo", made.ppo_prompts)
    _write_prompts(folder, "validation", made.validation_prompts)
    _write_prompts(folder, "test", made.test_prompts)
    _write_prompts(folder, "toxicity", made.toxicity_prompts)
    _write_texts(folder, "pretraining", made.pretraining_texts)
    _write_texts(folder, "held_out", made.held_out_texts)


def _from_files(config: ExperimentConfig, source: FileSource, folder: Path) -> None:
    from stages.data.demonstrations import load_prompts

    seed, ranked = f"data/{config.seed}", _ranked_already(config.labeling)
    demonstrations, validation = _demonstrations(source, seed)
    read = _reader(config.model, source.max_prompt_tokens)
    ppo, ranking, held = _prompts(source, seed, ranked, demonstrations, read)
    held_out = {"validation": held, "test": read(source.test_prompts)}
    if source.toxicity_prompts is not None:
        held_out["toxicity"] = load_prompts(source.toxicity_prompts)
    if demonstrations:
        _write_demonstrations(folder, demonstrations, validation)
    for use, prompts in ({"ranking": ranking, "ppo": ppo} | held_out).items():
        if prompts:
            _write_prompts(folder, use, prompts)
    training: dict[str, Sequence[Row]] = {"demonstrations": demonstrations, "ppo_prompts": ppo}
    training["ranking_prompts"] = ranked or ranking
    report_overlaps(
        folder / OVERLAP,
        {"validation": validation} | {f"{use}_prompts": rows for use, rows in held_out.items()},
        training,
    )
    if source.pretraining_texts is not None:
        _texts_from_files(source.pretraining_texts, source.held_out_texts, seed, folder)


def _demonstrations(
    source: FileSource, seed: str
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Demonstrations to train on, and to validate by."""
    from stages.data.demonstrations import load_demonstrations

    where = source.demonstrations
    if where is None:
        return [], []
    rows = limited(load_demonstrations(where), source.prompts_per_user, source.shared_prefix, where)
    if source.validation is not None:
        return rows, load_demonstrations(source.validation)
    number = max(1, int(len(rows) * VALIDATION_SHARE))
    return split(rows, number, f"{seed}/demonstrations", where)


def _reader(model: str, max_tokens: int | None) -> Callable[[str], list[Prompt]]:
    """Return a function that loads prompts, but for those of more tokens, which are counted."""
    from stages.data.demonstrations import load_prompts

    if max_tokens is None:
        return load_prompts
    from stages.data.template import conversation_ids
    from stages.models import load_tokenizer

    tokenizer = load_tokenizer(model_source(model))

    def read(where: str) -> list[Prompt]:
        rows = load_prompts(where)
        short = [row for row in rows if len(conversation_ids(tokenizer, row)) <= max_tokens]
        if not short:
            raise ValueError(
                f"{where}: every prompt has more than data.max_prompt_tokens ({max_tokens})"
            )
        if len(short) < len(rows):
            log.warning(
                "%s: %d of %d prompts are left out by data.max_prompt_tokens",
                *(where, len(rows) - len(short), len(rows)),
            )
        return short

    return read


def _prompts(
    source: FileSource,
    seed: str,
    ranked: Sequence[Prompt],
    demonstrations: Sequence[Demonstration],
    load: Callable[[str], list[Prompt]],
) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """Prompts for PPO, to be ranked, and to validate by."""

    def read(where: str) -> list[Prompt]:
        return limited(load(where), source.prompts_per_user, source.shared_prefix, where)

    ranking = [] if source.ranking_prompts is None else read(source.ranking_prompts)
    ppo = ranking if source.ppo_prompts is None else read(source.ppo_prompts)
    if source.validation_prompts is not None:
        return ppo, ranking, load(source.validation_prompts)
    return validation_prompts(
        *(ppo, ranking, min(NUM_VALIDATION_PROMPTS, max(1, len(ppo) // 10)), f"{seed}/prompts"),
        ranked=ranked,
        demonstrations=demonstrations,
        where=source.ppo_prompts or source.ranking_prompts or "",
    )


def _ranked_already(labeling: Labeling) -> list[Prompt]:
    """The prompts of rankings, or of tasks to be ranked, that were made elsewhere."""
    from stages.data.preferences import load_pairs

    sources = {key: text for (key, *_), _, text in external_names(labeling)}
    source = sources.get("tasks", sources.get("rankings"))
    if source is None or not (source.startswith(HUB) or Path(source).is_file()):
        return []
    if "tasks" in sources:
        tasks = read_records(Path(source), RankingTask)
    else:
        tasks, _ = load_pairs(source)
    return [
        Prompt(one.prompt, user=one.extra.get("user"), context=one.context, history=one.history)
        for one in tasks
    ]


def _texts_from_files(source: str, held_out: str | None, seed: str, folder: Path) -> None:
    """Write the base model's kind of text, document by document: it may be larger than memory."""
    from stages.data.demonstrations import pretraining_texts

    if held_out is not None:
        _write_texts(folder, "pretraining", pretraining_texts(source))
        _write_texts(folder, "held_out", pretraining_texts(held_out))
        return
    count = sum(1 for _ in pretraining_texts(source))
    digests = (held_out_digest(seed, text) for text in pretraining_texts(source))
    held, others = smallest(digests, max(1, int(count * HELD_OUT_SHARE)))
    if not others:
        raise ValueError(
            f"{source}: {len(held)} different texts in it; expected at least 2, one to hold out"
        )
    for use, wanted in (("pretraining", False), ("held_out", True)):
        texts = pretraining_texts(source)
        _write_texts(
            folder, use, (text for text in texts if (held_out_digest(seed, text) in held) == wanted)
        )


def _write_demonstrations(
    folder: Path, training: Sequence[Demonstration], validation: Sequence[Demonstration]
) -> None:
    write_jsonl(folder / "demonstrations.jsonl", (record.to_json() for record in training))
    write_jsonl(folder / "validation.jsonl", (record.to_json() for record in validation))


def _write_prompts(folder: Path, use: str, prompts: Sequence[Prompt]) -> None:
    write_jsonl(folder / f"{use}_prompts.jsonl", (prompt.to_json() for prompt in prompts))


def _write_texts(folder: Path, use: str, texts: Iterable[str]) -> None:
    write_jsonl(folder / f"{use}_texts.jsonl", ({"text": text} for text in texts))
