"""Sampling of responses: batched decoding with a KV cache; finished rows leave the batch.

What is sampled is exactly softmax(logits / temperature), cut to `top_p` if set: no other filter,
penalty or minimum length. Row r at step t uses the r-th row and t-th column of one matrix of
uniforms drawn at the start (inverse CDF), so a response depends on its prompt, its index in the
list and the generator, but not on the batch it was decoded in.

Dimension key:  N all rows of a batch,  B those still decoding,  Q prompt tokens,  T response
tokens,  L prompt and response so far,  V vocabulary,  C blocks of the vocabulary,  S stop ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.context_limit import ContextLimit, hard_position_limit
from stages.data.supervised import without_dropout
from stages.data.template import stop_ids
from stages.generation.compiled import CompiledRows
from stages.generation.config import SamplingConfig
from stages.generation.kv_cache import Request, RowAdapters, Rows, decoding_of
from stages.progress import Report, Step, silent

_BLOCK = 64  # tokens to a block of the two-level inverse CDF


@dataclass(frozen=True, slots=True)
class UserAdapters:
    """Adapters of several users; prompt i is answered under adapter `user_of[i]`."""

    adapters: RowAdapters
    user_of: Sequence[int]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One response: its token ids, with a stop id last if it `ended` by itself."""

    ids: list[int]
    ended: bool


def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    sampling: SamplingConfig,
    *,
    generator: torch.Generator,
    rows: Sequence[int] | None = None,
    report: Report = silent,
    users: UserAdapters | None = None,
) -> list[Sampled]:
    """Return one response to each prompt (token ids), in the order of `prompts`.

    With `rows`, indices of `prompts`, only those are answered, as if all were.

    A prompt given several times gets several responses and is processed once a batch (once a user,
    where prompts are of several `users`). Temperature 0 is greedy. A response ends at any of
    `stop_ids`. Raises ValueError for an empty prompt or a tokenizer without EOS.
    """
    stops = stop_ids(tokenizer, model)
    empty = [row for row, prompt in enumerate(prompts) if not prompt]
    if empty:
        raise ValueError(f"prompt {empty[0]} has no tokens; expected at least one")
    room = ContextLimit(str(model.config.name_or_path), hard_position_limit(model.config))
    longest = max(map(len, prompts), default=0)
    room.require(longest + sampling.max_new_tokens, "the longest prompt with its response")
    uniform_NT = torch.rand(
        len(prompts), sampling.max_new_tokens, generator=generator, device=generator.device
    ).to(model.device)
    user_of = users.user_of if users else [0] * len(prompts)
    chosen = range(len(prompts)) if rows is None else rows
    order = sorted(chosen, key=lambda row: (len(prompts[row]), prompts[row], user_of[row], row))
    responses: dict[int, Sampled] = {}
    with torch.inference_mode(), without_dropout(model):
        for start in range(0, len(order), sampling.batch_size):
            batch = order[start : start + sampling.batch_size]
            requests = [(prompts[row], user_of[row]) for row in batch]
            live = _live_rows(model, requests, users, sampling)
            sampled = _decode(live, uniform_NT[batch], sampling, stops)
            responses.update(zip(batch, sampled, strict=True))
            report(Step(len(responses), len(order)))
    return [responses[row] for row in chosen]


def sample_tokens(
    logits_BV: Tensor, uniform_B: Tensor, *, temperature: float, top_p: float = 1.0
) -> Tensor:
    """Return token ids by inverse CDF: the first whose cumulative probability exceeds the uniform.

    Temperature 0 takes the likeliest token. Two levels (blocks, then tokens) keep the sums short,
    so float32 is exact enough for large vocabularies; probability 0 is never drawn.
    """
    if temperature == 0.0:
        return logits_BV.argmax(-1)
    probability_BV = torch.softmax(logits_BV.float() / temperature, -1)
    if top_p < 1.0:
        probability_BV = nucleus(probability_BV, top_p)
    num_tokens = probability_BV.shape[-1]
    padding = -num_tokens % _BLOCK
    block_BCV = torch.nn.functional.pad(probability_BV, (0, padding))
    block_BCV = block_BCV.view(len(block_BCV), -1, _BLOCK)
    block_B, inside_B = _first_above(block_BCV.sum(-1), uniform_B, relative=True)
    rows = torch.arange(len(uniform_B), device=uniform_B.device)
    token_B, _ = _first_above(block_BCV[rows, block_B], inside_B, relative=False)
    return block_B * _BLOCK + token_B


def nucleus(probability_BV: Tensor, top_p: float) -> Tensor:
    """Return probabilities, 0 beyond the likeliest tokens that sum to `top_p` (not rescaled)."""
    sorted_BV, order_BV = probability_BV.sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    nucleus_BV = torch.zeros_like(before_BV, dtype=torch.bool)
    return probability_BV * nucleus_BV.scatter(-1, order_BV, before_BV < top_p)


def _first_above(weight_BV: Tensor, target_B: Tensor, *, relative: bool) -> tuple[Tensor, Tensor]:
    """Return the index of the first running sum above the target, and the target's excess over the
    sum before it."""
    sum_BV = weight_BV.cumsum(-1)
    total_B = sum_BV[:, -1]
    target_B = target_B * total_B if relative else target_B
    below_total_B = torch.nextafter(total_B, torch.zeros_like(total_B))
    target_B = torch.minimum(target_B.clamp(min=0.0), below_total_B)
    index_B = torch.searchsorted(sum_BV, target_B[:, None], right=True).squeeze(-1)
    before_BV = torch.nn.functional.pad(sum_BV, (1, 0))
    return index_B, target_B - before_BV.gather(-1, index_B[:, None]).squeeze(-1)


def _live_rows(
    model: PreTrainedModel,
    requests: list[Request],
    users: UserAdapters | None,
    sampling: SamplingConfig,
) -> Rows:
    adapters = users.adapters if users else None
    decoding = decoding_of(model, adapters, len(requests[-1][0]) + sampling.max_new_tokens)
    if not sampling.compiled:
        return decoding.rows(model, requests, adapters)
    if adapters is not None:
        raise ValueError("sampling.compiled is true, but several users answer; expected one")
    if not decoding.in_parts:
        raise ValueError(f"sampling.compiled is true, but {decoding.obstacle}; expected false")
    return CompiledRows(model, requests, sampling.max_new_tokens)


def _decode(
    live: Rows, uniform_NT: Tensor, sampling: SamplingConfig, stops: Sequence[int]
) -> list[Sampled]:
    """Decode one batch to its end."""
    rows, device = len(uniform_NT), uniform_NT.device
    token_NT = torch.zeros(uniform_NT.shape, dtype=torch.long, device=device)
    length_N = torch.full((rows,), sampling.max_new_tokens, device=device)
    ended_N = torch.zeros(rows, dtype=torch.bool, device=device)
    stop_S = torch.tensor(stops, device=device)
    for step in range(sampling.max_new_tokens):
        token_B = sample_tokens(
            live.logits_BV,
            uniform_NT[live.row_B, step],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        token_NT[live.row_B, step] = token_B
        finished_B = live.row_B[torch.isin(token_B, stop_S) & ~ended_N[live.row_B]]
        length_N[finished_B] = step + 1
        ended_N[finished_B] = True
        alive_B = ~ended_N[live.row_B]
        num_alive = int(alive_B.sum())
        if num_alive == 0 or step + 1 == sampling.max_new_tokens:
            break
        rows_left = live.rows_for(num_alive)
        if rows_left < len(alive_B):
            index_B = (~alive_B).argsort(stable=True)[:rows_left]
            live.keep(index_B)
            token_B = token_B[index_B]
        live.append(token_B)
    tokens, lengths, ended = token_NT.tolist(), length_N.tolist(), ended_N.tolist()
    return [Sampled(ids[:n], end) for ids, n, end in zip(tokens, lengths, ended, strict=True)]
