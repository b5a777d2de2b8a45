"""Public tasks written as instructions: to fine-tune on, and held-out clusters to be asked cold.

FLAN (Wei et al. 2022) and T0 (Sanh et al. 2022): every task has several templates, every row is
written out by one of them, and a whole cluster of tasks (all of one kind) is never trained on, so
that an answer to it shows what following instructions in general is worth.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from pipeline.config.baselines import InstructionTuned, TaskSource
from pipeline.evaluation.scorers.style import normalised
from pipeline.evaluation.statistics import wilson_interval
from reward_models.atomic_files import write_json
from reward_models.records import Demonstration, Prompt
from stages.data.demonstrations import source_rows
from stages.data.template import conversation_ids, response_text
from stages.generation.config import SamplingConfig
from stages.generation.generate import generate_responses
from stages.models import device, load_policy, load_tokenizer, to_device
from stages.precision import inference_weights
from stages.progress import Report
from stages.sft.config import SFTConfig
from stages.sft.train import train_sft

ZERO_SHOT = "zero_shot.json"
_VALIDATION = 10  # every so many examples is kept apart to choose the epoch by


@dataclass(frozen=True, slots=True)
class TaskSets:
    """Examples to train on, to choose the epoch by, and of the held-out clusters."""

    training: list[Demonstration]
    validation: list[Demonstration]
    held_out: list[Demonstration]


def task_sets(config: InstructionTuned, seed: int) -> TaskSets:
    """Return all sets; ValueError `file:line: ...` for a row that a template does not fit."""
    examples = _of_files(config, seed) if config.tasks else _of_the_world(config, seed)
    clusters = {str(example.category) for example in examples}
    if unknown := set(config.held_out) - clusters:
        raise ValueError(f"held_out names '{min(unknown)}'; expected some of {sorted(clusters)}")
    held_out = [example for example in examples if example.category in config.held_out]
    others = [example for example in examples if example.category not in config.held_out]
    if len(others) < 2:
        raise ValueError(f"{len(others)} examples outside the held-out clusters; expected two")
    Random(f"tasks/{seed}").shuffle(others)
    validation = max(1, len(others) // _VALIDATION)
    return TaskSets(others[validation:], others[:validation], held_out)


def tune(
    config: InstructionTuned,
    fine_tuning: SFTConfig,
    *,
    base: str | Path,
    sampling: SamplingConfig,
    out: Path,
    seed: int,
    report: Report,
) -> None:
    """Fine-tune the base into out/model, and test both on the held-out clusters."""
    sets = task_sets(config, seed)
    train_sft(
        fine_tuning.model_copy(update={"pretraining": None}),
        base=base,
        demonstrations=sets.training,
        validation=sets.validation,
        reward_model=None,
        selection_prompts=(),
        out=out,
        seed=seed,
        report=report,
    )
    greedy = sampling.model_copy(update={"temperature": 0.0})
    matches = {
        name: _exact_matches(source, sets.held_out, greedy, seed)
        for name, source in (("base", base), ("instructed", out / "model"))
    }
    results = {
        "held_out_clusters": config.held_out,
        "trained_examples": len(sets.training),
        "exact_match": {name: _rates(sets.held_out, right) for name, right in matches.items()},
        "interval": "Wilson, over examples",
        "sampling": greedy.model_dump(),
        "seed": seed,
    }
    write_json(out / ZERO_SHOT, results)


def _of_files(config: InstructionTuned, seed: int) -> list[Demonstration]:
    examples = []
    for task in config.tasks:
        rng = Random(f"task/{task.name}/{seed}")
        rows = list(source_rows(task.source))
        chosen = rng.sample(rows, min(len(rows), _num_examples(config, task.cluster)))
        examples += [_example(task, rng.choice(task.templates), at, row) for at, row in chosen]
    return examples


def _of_the_world(config: InstructionTuned, seed: int) -> list[Demonstration]:
    """Return the quickstart's kinds of request, right answers alone, in wordings for training."""
    from pipeline.quickstart import tasks

    examples = []
    for category in tasks.SHARES:
        rng = Random(f"task/{category}/{seed}")
        for _ in range(_num_examples(config, category)):
            prompt = tasks.make_prompt(
                rng,
                test=category in config.held_out,
                phrasings=tasks.TRAIN_PHRASINGS,
                attributes=tasks.PROMPT_ATTRIBUTES,
                category=category,
            )
            answer = str(prompt.extra["world"]["reference"])
            context = prompt.context
            examples.append(
                Demonstration(
                    prompt.prompt, answer, source=category, context=context, category=category
                )
            )
    return examples


def _num_examples(config: InstructionTuned, cluster: str) -> int:
    return config.zero_shot if cluster in config.held_out else config.examples_per_task


def _example(task: TaskSource, template: str, where: str, row: Mapping[str, Any]) -> Demonstration:
    try:
        prompt, answer = template.format_map(row), task.answer.format_map(row)
        return Demonstration(prompt, answer, source=task.name, category=task.cluster)
    except KeyError as error:
        raise ValueError(
            f"{where}: task '{task.name}' asks for {error}; the row has {sorted(row)}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{where}: task '{task.name}': {error}") from None


def _exact_matches(
    source: str | Path, examples: Sequence[Demonstration], sampling: SamplingConfig, seed: int
) -> list[bool]:
    """Return true for each answer that is the example's, but for case and punctuation."""
    if not examples:
        return []
    tokenizer, policy = load_tokenizer(source), load_policy(source, weights=inference_weights())
    to_device(policy, device())
    prompts = [Prompt(one.prompt, context=one.context, history=one.history) for one in examples]
    answers = generate_responses(
        policy,
        tokenizer,
        [conversation_ids(tokenizer, prompt) for prompt in prompts],
        sampling,
        generator=torch.Generator().manual_seed(seed),
    )
    texts = [normalised(response_text(tokenizer, answer.ids)) for answer in answers]
    return [text == normalised(one.response) for text, one in zip(texts, examples, strict=True)]


def _rates(examples: Sequence[Demonstration], right: Sequence[bool]) -> dict[str, Any]:
    """Return the share of right answers with its interval, by task."""
    by_task: dict[str, list[bool]] = defaultdict(list)
    for example, is_right in zip(examples, right, strict=True):
        by_task[str(example.source)].append(is_right)
    rates = {}
    for task, matches in by_task.items():
        low, high = wilson_interval(sum(matches), len(matches))
        value = sum(matches) / len(matches)
        rates[task] = {"value": value, "ci95": [low, high], "n": len(matches)}
    return rates
