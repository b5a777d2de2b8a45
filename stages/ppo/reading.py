"""How models read episodes: what goes in, and where in what comes out the responses stand.

A row is an episode, padded on the left. Where neighbouring episodes share a prompt, a row may be
the prompt followed by all its responses instead (a tree, see `stages.shared_prompt`): each token
sees its prompt and its own response only, at the position it has alone, so the prompt is computed
once and nothing else changes. Either way rows end in the last column, so that logits are needed
in the last columns only.

Dimension key:  E episodes,  B rows,  L tokens of a row,  N response tokens of all episodes in one
list,  V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.data.padding import positions
from stages.ppo.episodes import Episodes
from stages.shared_prompt import tree_mask


@dataclass(frozen=True, slots=True)
class Layout:
    """Model inputs; `place_N` predicts each response token, `place_E` ends each episode.

    A place is row * kept + column, counted in the `kept` last columns of all rows. `mask` is
    mask_BL (true at tokens) or, for trees, the additive mask_B1LL; `length_B` are the rows' tokens.
    """

    ids_BL: Tensor
    mask: Tensor
    positions_BL: Tensor
    kept: int
    place_N: Tensor
    place_E: Tensor
    length_B: Tensor


def lay_out(episodes: Episodes) -> Layout:
    """Rows as `episodes.sharing` says: one an episode, or one for so many neighbours."""
    return _rows(episodes) if episodes.sharing == 1 else _trees(episodes)


def response_logits(policy: nn.Module, layout: Layout) -> Tensor:
    """logits_NV that predict the response tokens, episode after episode.

    `policy` is a causal language model, or an engine around one.
    """
    output = _read_policy(policy, layout)
    logits_BLV: Tensor = output.logits
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
        read.append(given[0].flatten(0, 1))
        return (read[0].index_select(0, layout.place_N)[None],)

    handle = read_by.register_forward_pre_hook(select)
    try:
        output = _read_policy(policy, layout)
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


def _read_policy(policy: nn.Module, layout: Layout) -> Any:
    mask = layout.mask if layout.mask.is_floating_point() else layout.mask.long()
    return policy(
        input_ids=layout.ids_BL,
        attention_mask=mask,
        position_ids=layout.positions_BL,
        use_cache=False,
        logits_to_keep=layout.kept,
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


def _trees(episodes: Episodes) -> Layout:
    trees = [_tree(group) for group in _groups(episodes)]
    length = max(len(tree.ids) for tree in trees)
    kept = max(tree.region for tree in trees) + 1
    device = episodes.ids_BL.device
    predicted, ends = [], []
    for row, tree in enumerate(trees):
        last = row * kept + kept - 1  # the place of the row's last token
        predicted += [last - back for back in tree.predicted]
        ends += [last - back for back in tree.ends]
    branch_BL = _right_aligned([tree.branches for tree in trees], length, -1, device)
    return Layout(
        ids_BL=_right_aligned([tree.ids for tree in trees], length, 0, device),
        mask=tree_mask(branch_BL, _mask_dtype(device)),
        positions_BL=_right_aligned([tree.positions for tree in trees], length, 0, device),
        kept=kept,
        place_N=torch.tensor(predicted, device=device),
        place_E=torch.tensor(ends, device=device),
        length_B=torch.tensor([len(tree.ids) for tree in trees], device=device),
    )


@dataclass(frozen=True, slots=True)
class _Tree:
    """One prompt with its responses; places are counted back from the row's last token."""

    ids: list[int]
    branches: list[int]
    positions: list[int]
    predicted: list[int]
    ends: list[int]
    region: int  # tokens of all responses


def _tree(group: tuple[list[int], list[list[int]]]) -> _Tree:
    prompt, responses = group
    start, region = len(prompt), sum(map(len, responses))
    ids, branches, places = list(prompt), [0] * start, list(range(start))
    predicted, ends = [], []
    left = region  # response tokens from here to the row's end
    for number, response in enumerate(responses, 1):
        count = len(response)
        ids += response
        branches += [number] * count
        places += range(start, start + count)
        predicted += [region, *range(left - 1, left - count, -1)]
        left -= count
        ends.append(left)
    return _Tree(ids, branches, places, predicted, ends, region)


def _groups(episodes: Episodes) -> list[tuple[list[int], list[list[int]]]]:
    """Each prompt with the responses of the neighbouring episodes that share it."""
    rows = episodes.ids_BL.tolist()
    whole = episodes.mask_BL.sum(-1).tolist()
    said = episodes.response_BT.sum(-1).tolist()
    groups = []
    for start in range(0, len(rows), episodes.sharing):
        prompt = rows[start][len(rows[start]) - whole[start] : len(rows[start]) - said[start]]
        members = range(start, start + episodes.sharing)
        groups.append((prompt, [rows[e][len(rows[e]) - said[e] :] for e in members]))
    return groups


def _right_aligned(rows: list[list[int]], length: int, fill: int, device: torch.device) -> Tensor:
    return torch.tensor([[fill] * (length - len(row)) + row for row in rows], device=device)


def _mask_dtype(device: torch.device) -> torch.dtype:
    """Attention wants an additive mask in the dtype of its queries."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32
