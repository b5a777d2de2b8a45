"""How models read episodes: what goes in, and where in what comes out the responses stand.

A row is an episode, padded on the left, so that rows end in the last column and logits are needed
in the last columns only; on the right for models that padding before a text would change. Or all
episodes lie in one row without padding (`reward_models.packed_attention`), where those that share a
prompt are branches of it: it is computed once, and nothing else changes.

Dimension key:  E episodes,  B rows,  L tokens of a row,  N response tokens of all episodes in one
list,  V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_models.packed_attention import PackedSegments, segment_table
from stages.data.padding import positions
from stages.ppo.episodes import Episodes
from stages.reward.shared_prompt import PackedRow


@dataclass(frozen=True, slots=True)
class Layout:
    """Model inputs; `place_N` predicts each response token, `place_E` ends each episode.

    A place is row * kept + column, counted in the `kept` last columns of all rows. `mask` is
    mask_BL (true at tokens), or the segments of the only row. `length_B`: tokens of each row,
    or of each prompt with all its responses; `right`: rows are padded there.
    """

    ids_BL: Tensor
    mask: Tensor | PackedSegments
    positions_BL: Tensor
    kept: int
    place_N: Tensor
    place_E: Tensor
    length_B: Tensor
    right: bool = False

    def split(self, x_BL: Tensor) -> list[Tensor]:
        """What belongs to each of `length_B`'s tokens, of a tensor with a row and column each."""
        lengths = self.length_B.tolist()
        if isinstance(self.mask, PackedSegments):
            return list(torch.split(x_BL[0], lengths))
        return [x_L[self._own(n)] for x_L, n in zip(x_BL, lengths, strict=True)]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """What `split` took apart, 0 at padding."""
        if isinstance(self.mask, PackedSegments):
            return torch.cat(list(parts))[None]
        x_BL = parts[0].new_zeros(*self.ids_BL.shape, *parts[0].shape[1:])
        for x_L, part in zip(x_BL, parts, strict=True):
            x_L[self._own(len(part))] = part
        return x_BL

    def _own(self, tokens: int) -> slice:
        """The columns of a row's tokens."""
        return slice(tokens) if self.right else slice(-tokens, None)


def lay_out(episodes: Episodes, *, packed: bool = False, right: bool = False) -> Layout:
    """A row for each episode, padded on the left or `right`, or, where `packed`, one for all."""
    if packed:
        return _packed(episodes)
    return _right_rows(episodes) if right else _rows(episodes)


def response_logits(policy: nn.Module, layout: Layout) -> Tensor:
    """logits_NV that predict the response tokens, episode after episode.

    `policy` is a causal language model, or an engine around one.
    """
    if isinstance(layout.mask, PackedSegments):
        logits_1NV: Tensor = _read_policy(policy, layout, layout.place_N).logits
        return logits_1NV[0]
    logits_BLV: Tensor = _read_policy(policy, layout, layout.kept).logits
    logits_BLV = logits_BLV[:, -layout.kept :]  # of a model that does not know how many are wanted
    return logits_BLV.flatten(0, 1).index_select(0, layout.place_N)


def response_logits_and_states(
    policy: nn.Module, layout: Layout, read_by: nn.Module
) -> tuple[Tensor, Tensor]:
    """`response_logits`, and state_SD that they are made of: of every place, S = B * kept.

    `read_by` is the policy's unembedding (see `unembedding`), also where `policy` is an engine. It
    is given the states before response tokens alone, so no logits are computed for padding.
    """
    read: list[Tensor] = []

    def select(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        read.append(given[0][:, -layout.kept :].flatten(0, 1))
        return (read[0].index_select(0, layout.place_N)[None],)

    handle = read_by.register_forward_pre_hook(select)
    try:
        output = _read_policy(policy, layout, layout.kept)
    finally:
        handle.remove()
    logits_1NV: Tensor = output.logits
    return logits_1NV[0], read[0]


def unembedding(model: PreTrainedModel) -> nn.Module:
    """The module that turns last hidden states into logits."""
    found = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(found, nn.Module)
    return found


def response_values(critic: nn.Module, layout: Layout) -> Tensor:
    """value_N before each response token, read where it is predicted; `critic`: a RewardModel."""
    return _read(critic, layout).index_select(0, layout.place_N)


def response_scores(reward: nn.Module, layout: Layout) -> Tensor:
    """score_E at the last token of each response; `reward` is a RewardModel."""
    return _read(reward, layout).index_select(0, layout.place_E)


def _read_policy(policy: nn.Module, layout: Layout, keep: int | Tensor) -> Any:
    """Its output, with the logits of the `keep` last columns, or of the columns `keep`."""
    mask = layout.mask
    seen = mask.as_inputs() if isinstance(mask, PackedSegments) else {"attention_mask": mask.long()}
    return policy(
        input_ids=layout.ids_BL,
        position_ids=layout.positions_BL,
        use_cache=False,
        logits_to_keep=keep,
        **seen,
    )


def _read(model: nn.Module, layout: Layout) -> Tensor:
    length = layout.ids_BL.shape[1]
    read_L = torch.arange(length - layout.kept, length, device=layout.ids_BL.device)
    read_BL = read_L.expand(len(layout.ids_BL), -1)
    said_BL: Tensor = model(layout.ids_BL, layout.mask, layout.positions_BL, read_BL)
    return said_BL.flatten()


def _rows(episodes: Episodes) -> Layout:
    kept = episodes.response_BT.shape[1] + 1
    row_N, column_N = episodes.response_BT.nonzero(as_tuple=True)
    row_E = torch.arange(len(episodes.ids_BL), device=episodes.ids_BL.device)
    return Layout(
        ids_BL=episodes.ids_BL,
        mask=episodes.mask_BL,
        positions_BL=positions(episodes.mask_BL),
        kept=kept,
        place_N=row_N * kept + column_N,  # one column before the token's own
        place_E=row_E * kept + kept - 1,
        length_B=episodes.mask_BL.sum(-1),
    )


def _right_rows(episodes: Episodes) -> Layout:
    """Rows that begin in the first column; the logits of all columns are needed."""
    width = episodes.ids_BL.shape[1]
    length_B, said_B = episodes.mask_BL.sum(-1), episodes.response_BT.sum(-1)
    column_L = torch.arange(width, device=length_B.device)
    mask_BL = column_L < length_B[:, None]
    from_BL = (column_L + width - length_B[:, None]).clamp(max=width - 1)
    row_B = torch.arange(len(length_B), device=length_B.device)
    row_N, column_N = episodes.response_BT.nonzero(as_tuple=True)
    pads_B = episodes.response_BT.shape[1] - said_B  # columns before a response
    return Layout(
        ids_BL=episodes.ids_BL.gather(1, from_BL).masked_fill(~mask_BL, 0),
        mask=mask_BL,
        positions_BL=positions(mask_BL),
        kept=width,
        place_N=row_N * width + (length_B - said_B)[row_N] + column_N - pads_B[row_N] - 1,
        place_E=row_B * width + length_B - 1,
        length_B=length_B,
        right=True,
    )


def _packed(episodes: Episodes) -> Layout:
    row, device = PackedRow(), episodes.ids_BL.device
    predicted: list[int] = []
    ends: list[int] = []
    lengths: list[int] = []
    for prompt, responses in _groups(episodes):
        begin = len(row.ids)
        if len(responses) == 1:  # a stem alone: its attention is causal, without a mask
            row.add(prompt + responses[0], ())
            ends.append(len(row.ids) - 1)
        else:
            ends += row.add(prompt, responses)
        for end, response in zip(ends[-len(responses) :], responses, strict=True):
            predicted.append(begin + len(prompt) - 1)
            predicted += range(end - len(response) + 1, end)
        lengths.append(len(row.ids) - begin)
    return Layout(
        ids_BL=torch.tensor([row.ids], device=device),
        mask=PackedSegments.of(segment_table(row.segments).to(device)),
        positions_BL=torch.tensor([row.positions], device=device),
        kept=len(row.ids),
        place_N=torch.tensor(predicted, device=device),
        place_E=torch.tensor(ends, device=device),
        length_B=torch.tensor(lengths, device=device),
    )


def _groups(episodes: Episodes) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Each prompt with the responses of the neighbouring episodes that share it."""
    rows = episodes.ids_BL.tolist()
    whole = episodes.mask_BL.sum(-1).tolist()
    said = episodes.response_BT.sum(-1).tolist()
    for start in range(0, len(rows), episodes.sharing):
        prompt = rows[start][len(rows[start]) - whole[start] : len(rows[start]) - said[start]]
        members = range(start, start + episodes.sharing)
        yield prompt, [rows[e][len(rows[e]) - said[e] :] for e in members]
