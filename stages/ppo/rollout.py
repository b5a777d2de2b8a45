"""Rollouts: responses to a batch of prompts as padded tensors, on one rank or on all.

Rows are padded on the left, so every response ends in the last column: the response tokens of any
subset of rows are the last T columns, T being the longest response among them. Masks come from
lengths, never from ids.

Every rank samples and evaluates a part of the prompts, and then gets the episodes of all: they are
small beside the models, and advantages, minibatches and metrics are what one process would compute.

Dimension key:  B episodes,  L prompt and response,  T response tokens,  G groups of K
episodes that share a prompt.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol, Self

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad

from reward_models.packed_attention import PackedSegments, segment_table
from stages.adapters.lora import merged_lora
from stages.data.padding import positions
from stages.distributed.network import Network
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled, generate_responses
from stages.ppo.config import OwnRollouts
from stages.ppo.models import Models
from stages.precision import narrowed
from stages.reward.shared_prompt import PackedRow


@dataclass(frozen=True, slots=True)
class Episodes:
    """Prompts with their responses, right-aligned.

    `mask_BL` is true at every token, `response_BT` at the response's, in the last T columns. Every
    `sharing` neighbours have the same prompt, which is computed once where episodes are packed.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    response_BT: Tensor
    ended_B: Tensor
    sharing: int = 1

    @classmethod
    def build(
        cls,
        prompts: Sequence[list[int]],
        responses: Sequence[Sampled],
        device: torch.device,
        *,
        sharing: int = 1,
    ) -> Self:
        """Right-align each prompt with its response; responses have at least one token."""
        rows = [prompt + r.ids for prompt, r in zip(prompts, responses, strict=True)]
        width = max(map(len, rows))
        longest = max(len(r.ids) for r in responses)
        padded = [[0] * (width - len(row)) + row for row in rows]
        return cls(
            ids_BL=torch.tensor(padded, device=device),
            mask_BL=_last([len(row) for row in rows], width).to(device),
            response_BT=_last([len(r.ids) for r in responses], longest).to(device),
            ended_B=torch.tensor([r.ended for r in responses], device=device),
            sharing=sharing,
        )

    def take(self, rows: Tensor) -> Self:
        """Some of the episodes, without the columns that none of them uses.

        Those that share a prompt are taken together, in their order.
        """
        width = int(self.mask_BL[rows].sum(-1).max())
        longest = int(self.response_BT[rows].sum(-1).max())
        return type(self)(
            self.ids_BL[rows, -width:],
            self.mask_BL[rows, -width:],
            self.response_BT[rows, -longest:],
            self.ended_B[rows],
            self.sharing,
        )

    def ended_with(self, end: int) -> Self:
        """The same, with `end` instead of whichever id ended a response."""
        ids_BL = self.ids_BL.clone()
        ids_BL[self.ended_B, -1] = end
        return replace(self, ids_BL=ids_BL)

    def response_tokens(self) -> Tensor:
        """token_BT of the responses; meaningless outside `response_BT`."""
        return self.ids_BL[:, -self.response_BT.shape[1] :]

    def prompts(self) -> list[list[int]]:
        """The token ids of each prompt, without padding."""
        lengths = self.mask_BL.sum(-1) - self.response_BT.sum(-1)
        ends = self.ids_BL.shape[1] - self.response_BT.sum(-1)
        cuts = zip(self.ids_BL.tolist(), lengths.tolist(), ends.tolist(), strict=True)
        return [row[end - length : end] for row, length, end in cuts]

    def responses(self) -> list[list[int]]:
        """The token ids of each response, without padding."""
        counts = self.response_BT.sum(-1).tolist()
        rows = self.response_tokens().tolist()
        return [row[len(row) - n :] for row, n in zip(rows, counts, strict=True)]

    def groups(self) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Each prompt with the responses of the neighbouring episodes that share it."""
        rows, responses = self.ids_BL.tolist(), self.responses()
        lengths = self.mask_BL.sum(-1).tolist()
        for start in range(0, len(rows), self.sharing):
            texts = rows[start][len(rows[start]) - lengths[start] :]
            group = responses[start : start + self.sharing]
            yield texts[: len(texts) - len(group[0])], group


@dataclass(frozen=True, slots=True)
class Rollout:
    """Episodes with the outputs of all four models before the update, 0 outside the response.

    `score_B` is the reward model's, before any rule; `old_BT` the policy's log-probabilities, from
    the code path that training uses; `value_BT` the critic's before each token. `sampler_BT` are
    the log-probabilities of a sampler that is another program, else 0.
    """

    episodes: Episodes
    score_B: Tensor
    old_BT: Tensor
    reference_BT: Tensor
    value_BT: Tensor
    entropy_BT: Tensor
    sampler_BT: Tensor


@dataclass(frozen=True, slots=True)
class Experience:
    """The tensors of an update: old log-probabilities and values, advantages and returns."""

    episodes: Episodes
    old_BT: Tensor
    value_BT: Tensor
    advantage_BT: Tensor
    return_BT: Tensor

    def take(self, rows: Tensor) -> Self:
        """Some of the episodes, without the columns that none of them uses."""
        episodes = self.episodes.take(rows)
        longest = episodes.response_BT.shape[1]
        tables = (self.old_BT, self.value_BT, self.advantage_BT, self.return_BT)
        return type(self)(episodes, *(x_BT[rows, -longest:] for x_BT in tables))


@dataclass(frozen=True, slots=True)
class Layout:
    """Model inputs, and the positions of the responses in the outputs.

    `predict_N` is the position that predicts each response token and `end_E` that of each episode's
    last token, as row * columns + column, counted in the last `columns` columns of all rows. `mask`
    is mask_BL (true at tokens), or the segments of the only row. `length_B` counts the tokens of
    each row, or, where packed, of each prompt with all its responses.
    """

    ids_BL: Tensor
    mask: Tensor | PackedSegments
    positions_BL: Tensor
    columns: int
    predict_N: Tensor
    end_E: Tensor
    length_B: Tensor
    padded_right: bool = False

    def split(self, x_BL: Tensor) -> list[Tensor]:
        """A tensor with a row and column for each token, cut into the parts of `length_B`."""
        lengths = self.length_B.tolist()
        if isinstance(self.mask, PackedSegments):
            return list(torch.split(x_BL[0], lengths))
        return [x_L[self._tokens(n)] for x_L, n in zip(x_BL, lengths, strict=True)]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`, 0 at padding."""
        if isinstance(self.mask, PackedSegments):
            return torch.cat(list(parts))[None]
        x_BL = parts[0].new_zeros(*self.ids_BL.shape, *parts[0].shape[1:])
        for x_L, part in zip(x_BL, parts, strict=True):
            x_L[self._tokens(len(part))] = part
        return x_BL

    def _tokens(self, count: int) -> slice:
        """The columns of a row's tokens."""
        return slice(count) if self.padded_right else slice(-count, None)


def lay_out(episodes: Episodes, *, packed: bool = False, right: bool = False) -> Layout:
    """A row for each episode, padded on the left or `right`, or, where `packed`, one for all."""
    if packed:
        return _packed(episodes)
    return _padded(episodes, right=right)


class Sampler(Protocol):
    """The program that samples from the current policy."""

    def sample(
        self,
        prompts: Sequence[list[int]],
        rows: Sequence[int],
        sampling: SamplingConfig,
        generator: torch.Generator,
    ) -> tuple[list[Sampled], list[list[float]]]:
        """Responses to the prompts at `rows`, and its log-probabilities if it is another program.

        The random numbers are drawn for all prompts, so that ranks do not change them.
        """

    def close(self) -> None:
        """Give back whatever the run has taken outside this process."""


class LocalSampler:
    """Samples in this process, from the policy's full weights."""

    def __init__(
        self, models: Models, policy: Network, rollouts: OwnRollouts, accelerator: Accelerator
    ) -> None:
        self.models, self.policy, self.accelerator = models, policy, accelerator
        self.merged = rollouts.merged

    def sample(
        self,
        prompts: Sequence[list[int]],
        rows: Sequence[int],
        sampling: SamplingConfig,
        generator: torch.Generator,
    ) -> tuple[list[Sampled], list[list[float]]]:
        """See `Sampler`."""
        model, tokenizer = self.models.policy, self.models.tokenizer
        with self.policy.gathered(), self._merged(), self._decoding():
            responses = generate_responses(
                model, tokenizer, prompts, sampling, generator=generator, rows=rows
            )
        return responses, []

    def close(self) -> None:
        """See `Sampler`; nothing is taken."""

    def _merged(self) -> AbstractContextManager[None]:
        return merged_lora(self.models.policy) if self.merged else nullcontext()

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """Compute in the policy's precision; autocast converts no matrix at every token."""
        models = self.models
        copies = (
            nullcontext()
            if self.policy.shards_weights
            else narrowed(models.policy, models.numerics.compute)
        )
        with models.numerics.autocast(models.policy), copies:
            yield


def collect(
    sampler: Sampler,
    prompts: Sequence[list[int]],
    rows: Sequence[int],
    sampling: SamplingConfig,
    generator: torch.Generator,
    *,
    device: torch.device,
    sharing: int = 1,
) -> tuple[Episodes, list[list[float]]]:
    """One response to each prompt at `rows` from the current policy; `sharing` neighbours share.

    Returns the sampler's log-probabilities too, if it is another program.
    """
    responses, logprobs = sampler.sample(prompts, rows, sampling, generator)
    chosen = [prompts[row] for row in rows]
    return Episodes.build(chosen, responses, device, sharing=sharing), logprobs


def gather(accelerator: Accelerator, rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """The rollouts of all ranks as one, in the order of the prompts; `rows` are this rank's."""
    if accelerator.num_processes == 1:
        return rollout
    tables = [table.cpu() for table in _tables(rollout)]
    ranks: list[tuple[Sequence[int], list[Tensor]]] = gather_object([(rows, tables)])
    index: dict[int, int] = {}  # of each prompt in the tables of all ranks, one after another
    for position, row in enumerate(chain.from_iterable(rows for rows, _ in ranks)):
        index.setdefault(row, position)
    order = torch.tensor([index[row] for row in sorted(index)])
    columns = zip(*(tables for _, tables in ranks), strict=True)
    device = rollout.score_B.device
    whole = [_right_aligned(column)[order].to(device) for column in columns]
    ids_BL, mask_BL, response_BT, ended_B, *outputs = whole
    sharing = rollout.episodes.sharing
    return Rollout(Episodes(ids_BL, mask_BL, response_BT, ended_B, sharing), *outputs)


def by_length(episodes: Episodes, rows: Tensor, size: int | None) -> Iterator[Tensor]:
    """`rows` in batches of at most `size` of similar length, so that little is padded.

    Responses to one prompt stay together; a batch holds at least one such group.
    """
    group_GK = rows.view(-1, episodes.sharing)
    order_G = episodes.mask_BL[group_GK].sum((1, 2)).argsort(stable=True)
    most = len(group_GK) if size is None else max(1, size // episodes.sharing)
    for part_GK in torch.split(group_GK[order_G], most):
        yield part_GK.flatten()


def shuffled(count: int, sharing: int, generator: torch.Generator) -> Tensor:
    """So many rows in a random order that keeps together the `sharing` neighbours of a prompt."""
    group_GK = torch.arange(count).view(-1, sharing)
    return group_GK[torch.randperm(len(group_GK), generator=generator)].flatten()


def right_aligned(lists: Sequence[Sequence[float]], like_BT: Tensor) -> Tensor:
    """x_BT with each row's numbers in its last columns, 0 elsewhere."""
    x_BT = torch.zeros_like(like_BT)
    for row, values in enumerate(lists):
        x_BT[row, -len(values) :] = torch.tensor(values, device=x_BT.device)
    return x_BT


def write(table_BT: Tensor, rows: Tensor, batch: Episodes, x_N: Tensor) -> None:
    """Write a batch's response tokens into the rollout's right-aligned table."""
    x_BT = torch.zeros_like(batch.response_BT, dtype=table_BT.dtype)
    x_BT[batch.response_BT] = x_N.to(table_BT.dtype)
    table_BT[rows, -x_BT.shape[1] :] = x_BT


def _tables(rollout: Rollout) -> list[Tensor]:
    episodes = rollout.episodes
    texts = [episodes.ids_BL, episodes.mask_BL, episodes.response_BT, episodes.ended_B]
    outputs = [rollout.old_BT, rollout.reference_BT, rollout.value_BT, rollout.entropy_BT]
    return [*texts, rollout.score_B, *outputs, rollout.sampler_BT]


def _right_aligned(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts; narrower ones get empty columns in front."""
    if parts[0].dim() == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (width - part.shape[1], 0)) for part in parts])


def _last(counts: Sequence[int], width: int) -> Tensor:
    """A mask that is true in the last `counts[b]` of `width` columns."""
    return torch.arange(width) >= width - torch.tensor(counts)[:, None]


def _padded(episodes: Episodes, *, right: bool) -> Layout:
    """A row for each episode. Padded on the right, the logits of all columns are needed."""
    width, longest = episodes.ids_BL.shape[1], episodes.response_BT.shape[1]
    ids_BL, mask_BL, length_B = episodes.ids_BL, episodes.mask_BL, episodes.mask_BL.sum(-1)
    row_B = torch.arange(len(length_B), device=length_B.device)
    columns, shift_B = longest + 1, torch.zeros_like(length_B)
    if right:
        columns, shift_B = width, width - length_B
        column_L = torch.arange(width, device=length_B.device)
        mask_BL = column_L < length_B[:, None]
        source_BL = (column_L + shift_B[:, None]).clamp(max=width - 1)
        ids_BL = ids_BL.gather(1, source_BL).masked_fill(~mask_BL, 0)
    row_N, column_N = episodes.response_BT.nonzero(as_tuple=True)
    last_B = (row_B + 1) * columns - 1 - shift_B
    return Layout(
        ids_BL=ids_BL,
        mask=mask_BL,
        positions_BL=positions(mask_BL),
        columns=columns,
        predict_N=last_B[row_N] - longest + column_N,  # one column before the token's own
        end_E=last_B,
        length_B=length_B,
        padded_right=right,
    )


def _packed(episodes: Episodes) -> Layout:
    row, device = PackedRow(), episodes.ids_BL.device
    predict: list[int] = []
    ends: list[int] = []
    lengths: list[int] = []
    for prompt, responses in episodes.groups():
        begin = len(row.ids)
        if len(responses) == 1:  # a stem alone: its attention is causal, without a mask
            row.add(prompt + responses[0], ())
            ends.append(len(row.ids) - 1)
        else:
            ends += row.add(prompt, responses)
        for end, response in zip(ends[-len(responses) :], responses, strict=True):
            predict.append(begin + len(prompt) - 1)
            predict += range(end - len(response) + 1, end)
        lengths.append(len(row.ids) - begin)
    return Layout(
        ids_BL=torch.tensor([row.ids], device=device),
        mask=PackedSegments.of(segment_table(row.segments).to(device)),
        positions_BL=torch.tensor([row.positions], device=device),
        columns=len(row.ids),
        predict_N=torch.tensor(predict, device=device),
        end_E=torch.tensor(ends, device=device),
        length_B=torch.tensor(lengths, device=device),
    )
