"""Completions of prompts by policies, and the likelihood of given texts.

Dimension key:  B texts,  L tokens.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.samples.records import Completion
from pipeline.evaluation.suites.suite import Inputs, Samples, part_of
from pipeline.models.prompting import generate_answers, prompted_policy
from reward_models.context_limit import ContextLimit, context_limit, hard_position_limit
from reward_models.records import Prompt
from stages.data.padding import pad_right, positions
from stages.data.template import bos_ids, response_text, text_ids
from stages.generation.config import SamplingConfig
from stages.models import device, load_policy, load_tokenizer, to_device
from stages.precision import inference_weights
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
    tokenizer, policy = (
        load_tokenizer(speaker.weights),
        load_policy(speaker.weights, weights=inference_weights()),
    )
    to_device(policy, device())
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
    return generate_completions(
        inputs.policies,
        inputs.prompts,
        suite=TEST.name,
        sampling=inputs.config.sampling,
        seed=inputs.seed,
        report=inputs.report,
    )


TEST = Samples("test", "test prompts", _test_samples)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The natural logarithm of a continuation's probability, and its number of tokens."""

    logprob: float
    tokens: int


def policy_likelihoods(
    inputs: Inputs, texts: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, list[Likelihood]]]:
    """Yield the name of each policy, and its `likelihoods` of the texts."""
    size = inputs.config.sampling.batch_size
    for number, (name, source) in enumerate(inputs.policies.items()):
        report = part_of(inputs.report, number, len(inputs.policies))
        tokenizer, policy = load_tokenizer(source), load_policy(source, weights=inference_weights())
        to_device(policy, device())
        yield name, likelihoods(policy, tokenizer, texts, batch_size=size, report=report)


def likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, str]],
    *,
    batch_size: int = 32,
    report: Report = silent,
) -> list[Likelihood]:
    """Return log p(continuation | prefix) for each (prefix, continuation), in the order given.

    Prefix and continuation are cut into tokens together; a token that spans their border counts for
    the continuation. Before both stands what the tokenizer puts before a text, else its BOS, else
    its EOS, so that the first token is predicted too. Raises ValueError where a continuation has no
    token.
    """
    rows = [_cut(tokenizer, prefix, continuation) for prefix, continuation in texts]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    if rows:
        longest = order[-1]
        limit = ContextLimit(str(model.config.name_or_path), hard_position_limit(model.config))
        limit.require(len(rows[longest][0]), f"the text '{texts[longest][1][:40]}'")
    result: dict[int, Likelihood] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            ids_BL, mask_BL = pad_right([rows[index][0] for index in indices], pad_id=0)
            logprob_BL = _logprobs(model, ids_BL.to(model.device), mask_BL.to(model.device))
            for index, logprob_L in zip(indices, logprob_BL, strict=True):
                ids, first = rows[index]
                continuation_L = logprob_L[first - 1 : len(ids) - 1].double()
                result[index] = Likelihood(float(continuation_L.sum()), len(ids) - first)
            report(Step(len(result), len(rows)))
    return [result[index] for index in range(len(rows))]


def _cut(
    tokenizer: PreTrainedTokenizerBase, prefix: str, continuation: str
) -> tuple[list[int], int]:
    """Token ids of both, and the index of the continuation's first token."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    # `load_tokenizer` refuses a tokenizer without EOS.
    start = bos_ids(tokenizer) or [cast(int, eos if bos is None else bos)]
    before, whole = text_ids(tokenizer, prefix), text_ids(tokenizer, prefix + continuation)
    shared = 0
    while shared < min(len(before), len(whole)) and before[shared] == whole[shared]:
        shared += 1
    if shared == len(whole):
        raise ValueError(f"{continuation!r} after {prefix[-40:]!r} has no token")
    return [*start, *whole], len(start) + shared


def _logprobs(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """The log-probability of each token but the first, given those before it."""
    logits_BLV: Tensor = model(
        input_ids=ids_BL,
        attention_mask=mask_BL.long(),
        position_ids=positions(mask_BL),
        use_cache=False,
    ).logits[:, :-1]
    chosen_BL = logits_BLV.gather(-1, ids_BL[:, 1:, None]).squeeze(-1).float()
    return chosen_BL - logits_BLV.float().logsumexp(-1)
