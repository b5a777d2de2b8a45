"""Another attention on trial: kept where the model computes what it did before, else taken back.

transformers chooses a model's attention by a name in its config, which more than one place reads. A
model whose code asks for the literal `sdpa` builds no causal mask under another name and attends to
the future without a word. So a change proves itself: hidden states of plain rows, padded or not,
are as they were, and a later token changes no earlier one.

Dimension key:  B rows,  L tokens of a row,  D hidden size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from reward_models.one_line import first_line
from reward_models.trunk import embedding

REFUSALS = (ValueError, RuntimeError, TypeError, IndexError, AttributeError, KeyError)
ROUNDING = 1e-5  # of the largest hidden state: another kernel may add up in another order
TOKENS = 7  # of an example's row

Names = list[tuple[PretrainedConfig, str | None]]


def obstacle_to_attention(
    trunks: Sequence[PreTrainedModel], change: Callable[[], str | None]
) -> str | None:
    """Call `change`, which renames the attention of `trunks` and returns its own obstacle to that.

    Return that obstacle, or how a trunk differs from what it was; None where nothing does. With an
    obstacle, and where anything is raised, the trunks have the attention that they had.
    """
    names = _attention_names(trunks)
    is_kept = False
    try:
        before = [plain_states(trunk) for trunk in trunks]
        try:
            obstacle = change()
            if obstacle is None:
                after = [plain_states(trunk) for trunk in trunks]
                obstacle = _difference(before, after)
        except REFUSALS as error:
            obstacle = f"the model refused ({first_line(error)[:80]})"
        is_kept = obstacle is None
    finally:
        if not is_kept:
            for config, name in names:
                config._attn_implementation = name
    return obstacle


def plain_states(trunk: PreTrainedModel) -> list[Tensor]:
    """Hidden states of two rows that differ in their last token, alone and beside padding."""
    ids_BL = example_ids(trunk, TOKENS).expand(2, -1).clone()
    ids_BL[1, -1] = ids_BL[1, 0]
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, : TOKENS // 2] = 0
    with torch.no_grad():
        plain: Tensor = trunk(input_ids=ids_BL, use_cache=False).last_hidden_state
        padded: Tensor = trunk(
            input_ids=ids_BL, attention_mask=mask_BL, use_cache=False
        ).last_hidden_state
    return [plain, padded[mask_BL.bool()]]


def example_ids(model: PreTrainedModel, tokens: int, first: int = 0) -> Tensor:
    """ids_L of a text that is as good as any: tokens from all over the vocabulary, PAD aside."""
    rows = embedding(model).num_embeddings
    ids_L = (torch.arange(first, first + tokens, device=model.device) * 7919 + 3) % rows
    pads_L = ids_L == (-1 if model.config.pad_token_id is None else model.config.pad_token_id)
    return torch.where(pads_L, (ids_L + rows // 2) % rows, ids_L)


def _attention_names(trunks: Sequence[PreTrainedModel]) -> Names:
    """The configs that name an attention, outer ones first: to set theirs sets the inner ones'."""
    configs = [
        module.config
        for trunk in trunks
        for module in trunk.modules()
        if isinstance(module, PreTrainedModel)
    ]
    return [(config, config._attn_implementation) for config in configs]


def _difference(before: Sequence[list[Tensor]], after: Sequence[list[Tensor]]) -> str | None:
    for old, new in zip(before, after, strict=True):
        tolerance = ROUNDING * max(1.0, float(old[0].abs().max()))
        if float((new[0][0, :-1] - new[0][1, :-1]).abs().max()) > tolerance:
            return "its attention, chosen by another name, sees later tokens"
        worst = max(float((x - y).abs().max()) for x, y in zip(old, new, strict=True))
        if not worst <= tolerance:
            return f"its attention, chosen by another name, differs by {worst:.1e}"
    return None
