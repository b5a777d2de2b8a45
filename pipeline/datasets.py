"""The first stage of a run: every data set, from the quickstart's generator or the user's files.

They become JSON lines in one folder, so that all later stages read the same files and a run says by
hash what it was fed.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

from pipeline.config import ExperimentConfig, FileSource, QuickstartSource
from reward_models.records import Demonstration, Prompt, read_jsonl, read_records, write_jsonl

T = TypeVar("T")
NUM_VALIDATION_PROMPTS = 200  # at most, taken from the PPO prompts where no set is given
VALIDATION_SHARE = 0.1
HELD_OUT_SHARE = 0.05


class DataFolder:
    """Reads what `make_data` wrote. A set that the experiment does not have is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def demonstrations(self, name: str = "demonstrations") -> list[Demonstration]:
        """Demonstrations to train on, or those named `validation`."""
        return read_records(self.folder / f"{name}.jsonl", Demonstration)

    def prompts(self, use: str) -> list[Prompt]:
        """Prompts for `ranking`, `ppo`, `validation`, `test` or `toxicity`."""
        path = self.folder / f"{use}_prompts.jsonl"
        return read_records(path, Prompt) if path.is_file() else []

    def texts(self, use: str) -> list[str]:
        """Texts of the base model's kind: `pretraining` or `held_out`."""
        path = self.folder / f"{use}_texts.jsonl"
        return [str(row["text"]) for _, row in read_jsonl(path)] if path.is_file() else []


def make_data(config: ExperimentConfig, folder: Path) -> None:
    """Write every data set of the experiment; raise ValueError on the first bad line of a file."""
    match config.data:
        case QuickstartSource():
            _from_quickstart(config.data, config.seed, folder)
        case FileSource():
            _from_files(config.data, config.seed, folder)


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


def _from_files(source: FileSource, seed: int, folder: Path) -> None:
    from stages.data.demonstrations import load_demonstrations, load_prompts

    rng = Random(f"data/{seed}")
    demonstrations = load_demonstrations(source.demonstrations)
    if source.validation is not None:
        validation = load_demonstrations(source.validation)
    else:
        kept = max(1, int(len(demonstrations) * VALIDATION_SHARE))
        demonstrations, validation = _apart(demonstrations, kept, rng, source.demonstrations)
    ranking = load_prompts(source.ranking_prompts)
    ppo = load_prompts(source.ppo_prompts) if source.ppo_prompts is not None else ranking
    if source.validation_prompts is not None:
        held = load_prompts(source.validation_prompts)
    else:
        kept = min(NUM_VALIDATION_PROMPTS, max(1, len(ppo) // 10))
        ppo, held = _apart(ppo, kept, rng, source.ppo_prompts or source.ranking_prompts)
    _write_demonstrations(folder, demonstrations, validation)
    _write_prompts(folder, "ranking", ranking)
    _write_prompts(folder, "ppo", ppo)
    _write_prompts(folder, "validation", held)
    _write_prompts(folder, "test", load_prompts(source.test_prompts))
    if source.toxicity_prompts is not None:
        _write_prompts(folder, "toxicity", load_prompts(source.toxicity_prompts))
    if source.pretraining_texts is not None:
        _texts_from_files(source.pretraining_texts, source.held_out_texts, rng, folder)


def _texts_from_files(source: str, held_out: str | None, rng: Random, folder: Path) -> None:
    """Write the base model's kind of text, document by document: it may be larger than memory."""
    from stages.data.demonstrations import pretraining_texts

    if held_out is not None:
        _write_texts(folder, "pretraining", pretraining_texts(source))
        _write_texts(folder, "held_out", pretraining_texts(held_out))
        return
    count = sum(1 for _ in pretraining_texts(source))
    held = _chosen(count, max(1, int(count * HELD_OUT_SHARE)), rng, source)
    for use, wanted in (("pretraining", False), ("held_out", True)):
        numbered = enumerate(pretraining_texts(source))
        _write_texts(folder, use, (text for place, text in numbered if (place in held) == wanted))


def _apart(items: Sequence[T], number: int, rng: Random, where: str) -> tuple[list[T], list[T]]:
    """The items without a random `number` of them, and those; both in their order."""
    chosen = _chosen(len(items), number, rng, where)
    kept = [item for place, item in enumerate(items) if place not in chosen]
    return kept, [items[place] for place in sorted(chosen)]


def _chosen(count: int, number: int, rng: Random, where: str) -> set[int]:
    """The places of a random `number` of `count` things to hold out."""
    if number >= count:
        raise ValueError(f"{where}: {count} in it; expected at least 2, one of them to hold out")
    return set(rng.sample(range(count), number))


def _write_demonstrations(
    folder: Path, training: Sequence[Demonstration], validation: Sequence[Demonstration]
) -> None:
    write_jsonl(folder / "demonstrations.jsonl", (record.to_json() for record in training))
    write_jsonl(folder / "validation.jsonl", (record.to_json() for record in validation))


def _write_prompts(folder: Path, use: str, prompts: Sequence[Prompt]) -> None:
    write_jsonl(folder / f"{use}_prompts.jsonl", (prompt.to_json() for prompt in prompts))


def _write_texts(folder: Path, use: str, texts: Iterable[str]) -> None:
    write_jsonl(folder / f"{use}_texts.jsonl", ({"text": text} for text in texts))
