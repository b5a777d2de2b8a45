"""How likely a policy finds given texts: total log-probability of a continuation after a prefix.

Dimension key:  B texts,  L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.context_limit import ContextLimit, hard_position_limit
from stages.data.padding import pad_right, positions
from stages.data.template import bos_ids, text_ids
from stages.progress import Report, Step, silent


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Natural logarithm of a continuation's probability, and of how many tokens it is made."""

    logprob: float
    tokens: int


def likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, str]],
    *,
    batch_size: int = 32,
    report: Report = silent,
) -> list[Likelihood]:
    """log p(continuation | prefix) for each (prefix, continuation), in the order given.

    Prefix and continuation are cut into tokens together; a token that spans their border counts for
    the continuation. Before both stands what the tokenizer puts before a text, else its BOS, else
    its EOS, so that the first token is predicted too. Raises ValueError where a continuation has no
    token.
    """
    rows = [_cut(tokenizer, prefix, continuation) for prefix, continuation in texts]
    order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
    if rows:
        longest = order[-1]
        room = ContextLimit(str(model.config.name_or_path), hard_position_limit(model.config))
        room.require(len(rows[longest][0]), f"the text '{texts[longest][1][:40]}'")
    found: dict[int, Likelihood] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            ids_BL, mask_BL = pad_right([rows[place][0] for place in places], pad_id=0)
            logprob_BL = _logprobs(model, ids_BL.to(model.device), mask_BL.to(model.device))
            for place, logprob_L in zip(places, logprob_BL, strict=True):
                ids, first = rows[place]
                said_L = logprob_L[first - 1 : len(ids) - 1].double()
                found[place] = Likelihood(float(said_L.sum()), len(ids) - first)
            report(Step(len(found), len(rows)))
    return [found[place] for place in range(len(rows))]


def _cut(
    tokenizer: PreTrainedTokenizerBase, prefix: str, continuation: str
) -> tuple[list[int], int]:
    """Token ids of both, and the place of the continuation's first token."""
    start = bos_ids(tokenizer) or [_boundary(tokenizer)]
    before, whole = text_ids(tokenizer, prefix), text_ids(tokenizer, prefix + continuation)
    shared = 0
    while shared < min(len(before), len(whole)) and before[shared] == whole[shared]:
        shared += 1
    if shared == len(whole):
        raise ValueError(f"nothing is said after {prefix[-40:]!r}: {continuation!r} has no token")
    return [*start, *whole], len(start) + shared


def _boundary(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids that part documents, for a tokenizer that puts nothing before a text."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return cast(int, eos if bos is None else bos)  # `load_tokenizer` refuses one without EOS


def _logprobs(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """log-probability of each token but the first, given those before it."""
    logits_BLV: Tensor = model(
        input_ids=ids_BL,
        attention_mask=mask_BL.long(),
        position_ids=positions(mask_BL),
        use_cache=False,
    ).logits[:, :-1]
    chosen_BL = logits_BLV.gather(-1, ids_BL[:, 1:, None]).squeeze(-1).float()
    return chosen_BL - logits_BLV.float().logsumexp(-1)
