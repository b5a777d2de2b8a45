"""Completions of every policy to every prompt: the rows that scorers judge."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch

from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.suites.suite import Inputs, Samples
from pipeline.models.prompting import generate_answers, prompted_policy
from reward_models.context_limit import context_limit
from reward_models.records import Prompt
from stages.data.template import response_text
from stages.generation.config import SamplingConfig
from stages.models import device, load_policy, load_tokenizer
from stages.progress import Report, Step, silent
from stages.prompt_lengths import require_fit

UNINSTRUCTED: Mapping[str, str] = {"none": ""}


def generate_completions(
    policies: Mapping[str, str | Path],
    prompts: Sequence[Prompt],
    *,
    suite: str,
    sampling: SamplingConfig,
    instructions: Mapping[str, str] = UNINSTRUCTED,
    samples: int = 1,
    seed: int,
    report: Report = silent,
) -> list[Completion]:
    """Return `samples` completions of every policy to every prompt under every instruction.

    All policies draw with the same random numbers, so that their difference is not that of the
    draws. An instruction stands before the prompt. Raises ValueError if two prompts share an id.
    """
    blank = _blank_rows(prompts, suite, instructions, samples)
    _require_fit(policies, blank, sampling.max_new_tokens, suite)
    rows: list[Completion] = []
    for model, source in policies.items():

        def listen(step: Step, before: int = len(rows)) -> None:
            report(Step(before + step.done, len(blank) * len(policies), step.metrics))

        rows += _responses(model, source, blank, sampling, seed, suite, listen)
    return rows


def _require_fit(
    policies: Mapping[str, str | Path], rows: Sequence[Completion], new_tokens: int, suite: str
) -> None:
    """Refuse prompts that do not fit a policy, before any is loaded."""
    prompts = [Prompt(row.prompt, context=row.context) for row in rows]
    for name, source in policies.items():
        speaker = prompted_policy(source)
        room = context_limit(speaker.weights).without(len(speaker.prefix))
        tokenizer = load_tokenizer(speaker.weights)
        require_fit(tokenizer, prompts, new_tokens, [room], f"{suite} prompts, {name}")


def _blank_rows(
    prompts: Sequence[Prompt],
    suite: str,
    instructions: Mapping[str, str],
    samples: int,
) -> list[Completion]:
    """The rows of one policy, still without model and completion."""
    names = ids_of(prompts, suite)
    return [
        Completion(
            id=name,
            model="",
            prompt=f"{instruction} {prompt.prompt}" if instruction else prompt.prompt,
            completion="",
            suite=suite,
            prompt_type=prompt_type,
            k=k,
            context=prompt.context,
            category=prompt.category,
            answerable=prompt.answerable,
            prompt_extra=prompt.extra,
            history=prompt.history,
        )
        for prompt_type, instruction in instructions.items()
        for name, prompt in zip(names, prompts, strict=True)
        for k in range(samples)
    ]


def ids_of(prompts: Sequence[Prompt], suite: str) -> list[str]:
    """Return the name of each prompt in results; raise ValueError where two share one."""
    names = [prompt.id or _content_id(prompt) for prompt in prompts]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{suite} prompts: two have the id '{twice}'; they cannot be told apart")
    return names


def _content_id(prompt: Prompt) -> str:
    turns = map(str, prompt.history)
    text = "\n\n".join([str(prompt.context), *turns, prompt.prompt])
    return sha256(text.encode()).hexdigest()[:16]


def _responses(
    model: str,
    source: str | Path,
    blank: Sequence[Completion],
    sampling: SamplingConfig,
    seed: int,
    suite: str,
    report: Report,
) -> list[Completion]:
    speaker = prompted_policy(source)
    tokenizer, policy = load_tokenizer(speaker.weights), load_policy(speaker.weights)
    policy.to(device())  # type: ignore[arg-type]  # the decorator hides nn.Module's signature
    drawn = generate_answers(
        speaker,
        policy,
        tokenizer,
        [Prompt(row.prompt, context=row.context, history=row.history) for row in blank],
        sampling,
        torch.Generator().manual_seed(zlib.crc32(f"{suite}/{seed}".encode())),
        report,
    )
    settings = {**sampling.model_dump(exclude={"batch_size"}), "seed": seed}
    return [
        dataclasses.replace(
            row,
            model=model,
            completion=response_text(tokenizer, response.ids),
            finish_reason="stop" if response.ended else "length",
            n_tokens=len(response.ids) - response.ended,
            generation=settings,
        )
        for row, response in zip(blank, drawn, strict=True)
    ]


def _test_samples(inputs: Inputs) -> list[Completion]:
    """Return one completion of every policy to every test prompt."""
    return generate_completions(
        inputs.policies,
        inputs.prompts,
        suite=TEST.name,
        sampling=inputs.config.sampling,
        seed=inputs.seed,
        report=inputs.report,
    )


TEST = Samples("test", "test prompts", _test_samples)
