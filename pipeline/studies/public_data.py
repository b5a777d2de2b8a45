"""Public files as the data of shipped configs. Nothing is downloaded.

configs/smollm2   `data/seed_tasks.jsonl` of github.com/yizhongw/self-instruct (175 tasks written by
                  people, Apache-2.0), and QA-Feedback, see `stages/data/preferences.py`
configs/robustness/e2e.yaml
                  `devset.csv` and `testset_w_refs.csv` of the E2E challenge (Novikova et al. 2017,
                  CC BY-SA 4.0): columns `mr`, a meaning representation, and `ref`, a person's text
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pipeline.studies.robustness.config import REFERENCES
from reward_models.atomic_files import write_jsonl
from reward_models.records import Demonstration, Prompt
from reward_models.row_files import csv_rows
from stages.data.demonstrations import load_demonstrations
from stages.data.preferences import ComparedQuestion, load_qa_feedback

E2E_PROMPT = "Describe the place in one or two sentences: {mr}"
E2E_DOMAIN, E2E_OUTSIDE = ("coffee shop",), ("pub", "restaurant")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The parts of the SmolLM2 experiment's data."""

    demonstrations: int = 16  # seed tasks; corrected answers come on top
    comparisons: int = 16  # questions whose answers were ranked
    ppo: int = 8  # questions for PPO
    test: int = 8  # questions for the evaluation
    context_words: int = 100  # of passages


@dataclass(frozen=True, slots=True)
class E2ESizes:
    """The parts of the E2E data."""

    train: int = 200  # demonstrations to train on
    validation: int = 30  # demonstrations that choose the epoch
    test: int = 50  # meaning representations of each domain
    seed: int = 0


def write_smollm2(seed_tasks: Path, qa_feedback: Path, out: Path, sizes: Sizes) -> None:
    """Write demonstrations, tasks, rankings, prompts and texts as JSON lines.

    Questions are divided once, by their order in the file, among comparisons, PPO and test; the
    passages of those left over, from Wikipedia, are the pretraining texts.
    """
    seeds = load_demonstrations(str(seed_tasks))[: sizes.demonstrations]
    questions = load_qa_feedback(qa_feedback, context_words=sizes.context_words)
    ppo_start = sizes.comparisons
    test_start = ppo_start + sizes.ppo
    end = test_start + sizes.test
    if len(questions) <= end:
        raise ValueError(f"{qa_feedback}: {len(questions)} questions, expected above {end}")
    compared = questions[:ppo_start]
    corrected = [question.demonstration for question in compared if question.demonstration]
    ranked = [question for question in compared if question.ranking]
    demonstrations = [demonstration.to_json() for demonstration in [*seeds, *corrected]]
    write_jsonl(out / "demonstrations.jsonl", demonstrations)
    write_jsonl(out / "tasks.jsonl", (question.task.to_json() for question in ranked))
    rankings = (question.ranking.to_json() for question in ranked if question.ranking)
    write_jsonl(out / "rankings.jsonl", rankings)
    parts = {
        "ranking": ranked,
        "ppo": questions[ppo_start:test_start],
        "test": questions[test_start:end],
    }
    for use, part in parts.items():
        write_jsonl(out / f"{use}_prompts.jsonl", (_prompt(each).to_json() for each in part))
    passages = [question.task.context for question in load_qa_feedback(qa_feedback)[end:]]
    texts = ({"text": passage} for passage in passages if passage)
    write_jsonl(out / "pretraining_texts.jsonl", texts)


def _prompt(question: ComparedQuestion) -> Prompt:
    task = question.task
    return Prompt(
        task.prompt, id=task.id, context=task.context, category=task.category, answerable=True
    )


def write_e2e(devset: Path, testset: Path, out: Path, sizes: E2ESizes) -> None:
    """Write two domains, coffee shops to train on, pubs and restaurants to test beyond.

    All texts about one meaning representation are its references.
    """
    domain = _of_kind(_references(devset), E2E_DOMAIN)
    outside = _of_kind(_references(testset), E2E_OUTSIDE)
    needed = sizes.train + sizes.validation + sizes.test
    if len(domain) < needed or len(outside) < sizes.test:
        raise ValueError(
            f"{devset} has {len(domain)} of {', '.join(E2E_DOMAIN)}, {testset} {len(outside)} of "
            f"{', '.join(E2E_OUTSIDE)}; expected {needed} and {sizes.test}"
        )
    rng = Random(f"e2e/{sizes.seed}")
    chosen, others = rng.sample(sorted(domain), needed), rng.sample(sorted(outside), sizes.test)
    parts = {
        "train": chosen[: sizes.train],
        "validation": chosen[sizes.train : sizes.train + sizes.validation],
        "in_domain": chosen[sizes.train + sizes.validation :],
        "out_of_domain": others,
    }
    texts = {**outside, **domain}
    for name, meanings in parts.items():
        rows = (_demonstration(each, texts[each], rng).to_json() for each in meanings)
        write_jsonl(out / f"{name}.jsonl", rows)


def _references(path: Path) -> Mapping[str, Sequence[str]]:
    """Return every meaning representation with its texts."""
    texts: dict[str, list[str]] = defaultdict(list)
    for where, row in csv_rows(path):
        if not {"mr", "ref"} <= row.keys():
            raise ValueError(f"{where}: columns {sorted(row)}; expected mr and ref")
        texts[row["mr"]].append(row["ref"].strip())
    return texts


def _of_kind(
    references: Mapping[str, Sequence[str]], kinds: Collection[str]
) -> Mapping[str, Sequence[str]]:
    """Return those whose `eatType` is one of the kinds."""

    def kind(meaning: str) -> str:
        match = re.search(r"eatType\[(.*?)\]", meaning)
        return match[1] if match else ""

    return {meaning: texts for meaning, texts in references.items() if kind(meaning) in kinds}


def _demonstration(meaning: str, texts: Sequence[str], rng: Random) -> Demonstration:
    prompt = E2E_PROMPT.format(mr=meaning)
    extra = {REFERENCES: list(texts)}
    return Demonstration(prompt, rng.choice(texts), source="e2e", extra=extra)
