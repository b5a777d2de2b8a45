"""The likelihood of given texts under a policy: log-probability of a continuation after a prefix.

Dimension key:  B texts,  L tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.suites.suite import Inputs
from reward_models.context_limit import ContextLimit, hard_position_limit
from stages.data.padding import pad_right, positions
from stages.data.template import bos_ids, text_ids
from stages.models import device, load_policy, load_tokenizer
from stages.progress import Report, Step, silent


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

        def listen(step: Step, before: int = number * len(texts)) -> None:
            inputs.report(Step(before + step.done, len(inputs.policies) * len(texts)))

        tokenizer, policy = load_tokenizer(source), load_policy(source)
        policy.to(device())  # type: ignore[arg-type]  # the decorator hides nn.Module's signature
        yield name, likelihoods(policy, tokenizer, texts, batch_size=size, report=listen)


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
    start = bos_ids(tokenizer) or [_boundary(tokenizer)]
    before, whole = text_ids(tokenizer, prefix), text_ids(tokenizer, prefix + continuation)
    shared = 0
    while shared < min(len(before), len(whole)) and before[shared] == whole[shared]:
        shared += 1
    if shared == len(whole):
        raise ValueError(f"{continuation!r} after {prefix[-40:]!r} has no token")
    return [*start, *whole], len(start) + shared


def _boundary(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that separates documents, for a tokenizer that puts nothing before a text."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return cast(int, eos if bos is None else bos)  # `load_tokenizer` refuses one without EOS


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
