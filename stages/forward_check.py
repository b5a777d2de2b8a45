"""A text has the same numbers however it is read, found on examples: alone, padded, before others.

Architectures differ in what they do with padding and positions, and many take an argument that they
do not know without a word. So each is asked what it makes of two short texts, alone and together:

    alone          a a a a a a a        b b b
    padded right   a a a a a a a        b b b . . . .      what SFT, reward models and scores read
    padded left    a a a a a a a        . . . . b b b      what PPO's rows and a KV cache read

Dimension key:  B rows,  L tokens of a row,  V vocabulary or hidden size.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_models.backbone import require_backbone, token_embedding
from reward_models.model_files import first_line
from reward_models.packed_attention import FORWARD_ERRORS, attention_windows, example_ids
from stages.data.padding import positions

LONG, SHORT = 9, 4  # tokens of the examples
ROUNDING = 1e-4  # of the largest number, for float32
SMALL = 1 << 20  # numbers of a parameter whose gradient is looked at
Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # ids_BL, mask_BL, positions_BL -> out_BLV


def check_forward(model: PreTrainedModel, source: object) -> None:
    """Raise ValueError unless the model reads from left to right, and padding changes nothing.

    Also where no reward model could be made of it. `source` is where it came from. Its mode,
    weights and the random state stay what they are.
    """
    examples = _examples(model, LONG)
    name = f"{source}: {type(model).__name__}"
    try:
        require_backbone(model, source)
        with torch.no_grad():
            alone = [_logits(model)(ids, torch.ones_like(ids).bool(), None) for ids in examples]
            later_1L = examples[0].clone()
            later_1L[0, -1] = later_1L[0, 0]
            changed = _logits(model)(later_1L, torch.ones_like(later_1L).bool(), None)
    except ValueError:
        raise
    except FORWARD_ERRORS as error:
        raise ValueError(f"{name} does not read a text ({first_line(error)[:120]})") from None
    tolerance = rounding(alone[0])
    if _worst(changed[:, :-1], alone[0][:, :-1]) > tolerance:
        raise ValueError(
            f"{name} lets a later token change the logits of earlier ones; expected a causal "
            "language model (an encoder is none)"
        )
    difference = _padded_difference(_logits(model), examples, alone, "right")
    if isinstance(difference, str) or not difference <= tolerance:
        raise ValueError(
            f"{name} gives a text other numbers beside a longer one, padded on the right with "
            f"positions from 0 ({_in_words(difference)}); expected the same"
        )


def padding_side(read: Forward, model: PreTrainedModel, longest: int) -> Side:
    """Return the side on which padding leaves a row's outputs as they are; left if it can be.

    `model` is what `read` calls in the end; one of the examples outgrows its windows, where texts
    of `longest` tokens do. Raises ValueError where neither side will do.
    """
    outgrown = [window + SHORT for window in attention_windows(model).values() if window < longest]
    examples = _examples(model, max(LONG, *outgrown) if outgrown else LONG)
    whole = [(ids, torch.ones_like(ids).bool()) for ids in examples]
    with torch.no_grad():
        alone = [read(ids, mask, positions(mask)) for ids, mask in whole]
    refusals: list[str] = []
    for side in SIDES:
        difference = _padded_difference(read, examples, alone, side)
        if not isinstance(difference, str) and difference <= rounding(alone[0]):
            if _has_slope(read, model, *_padded(examples, side)):
                return side
            difference = "a gradient is not finite"
        refusals.append(f"{side}: {_in_words(difference)}")
    raise ValueError(
        f"{type(model).__name__} does not read a text beside a longer one as it reads it alone, "
        f"wherever it is padded ({'; '.join(refusals)})"
    )


def rounding(out: Tensor) -> float:
    """The tolerance between two ways to compute such numbers."""
    return ROUNDING * float(out.abs().max()) + 1e-6


def _padded_difference(
    read: Forward, examples: list[Tensor], alone: list[Tensor], side: Side
) -> float | str:
    """The difference of the examples' outputs from those alone, or the model's refusal."""
    ids_BL, mask_BL = _padded(examples, side)
    try:
        with torch.no_grad():
            out_BLV = read(ids_BL, mask_BL, positions(mask_BL))
    except FORWARD_ERRORS as error:
        return first_line(error)[:80]
    rows = zip(out_BLV, mask_BL, alone, strict=True)
    return max(_worst(out_LV[mask_L], one[0]) for out_LV, mask_L, one in rows)


def _padded(examples: list[Tensor], side: Side) -> tuple[Tensor, Tensor]:
    """ids_BL, filled up with a token that is one of a text, and mask_BL.

    A model's own PAD may be a row of zeros that leaves no trace until it is trained.
    """
    width = max(ids.shape[1] for ids in examples)
    ids_BL = examples[0][0, 1].expand(len(examples), width).clone()
    mask_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
    for row, ids in enumerate(examples):
        columns = slice(width - ids.shape[1], width) if side == "left" else slice(ids.shape[1])
        ids_BL[row, columns], mask_BL[row, columns] = ids[0], True
    return ids_BL, mask_BL


def _has_slope(read: Forward, model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> bool:
    """Return true where the texts' gradients are finite: of embeddings, small parameters.

    A root of what padding is made of has none, though no number of a text depends on it.
    """
    table = token_embedding(model)
    embedded: list[Tensor] = []

    def listen(_: nn.Module, __: object, output: Tensor) -> Tensor:
        heard = output if output.requires_grad else output.detach().requires_grad_()
        embedded.append(heard)
        return heard.clone()  # which a model may change in place

    handle = table.register_forward_hook(listen)
    small = [p for p in model.parameters() if p.requires_grad and p.numel() <= SMALL]
    try:
        with torch.enable_grad():
            total = read(ids_BL, mask_BL, positions(mask_BL))[mask_BL].float().sum()
            slopes = torch.autograd.grad(total, [embedded[0], *small], allow_unused=True)
    finally:
        handle.remove()
    if slopes[0] is not None and table.padding_idx == 0:  # what padding is filled up with
        slopes = (slopes[0][mask_BL], *slopes[1:])
    return all(bool(torch.isfinite(slope).all()) for slope in slopes if slope is not None)


def _logits(model: PreTrainedModel) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    def read(ids_BL: Tensor, mask_BL: Tensor, positions_BL: Tensor | None) -> Tensor:
        given = {}
        if positions_BL is not None:
            given = {"attention_mask": mask_BL.long(), "position_ids": positions_BL}
        logits_BLV: Tensor = model(input_ids=ids_BL, use_cache=False, **given).logits
        return logits_BLV.float()

    return read


def _examples(model: PreTrainedModel, longest: int) -> list[Tensor]:
    return [example_ids(model, longest)[None], example_ids(model, SHORT, LONG)[None]]


def _worst(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def _in_words(difference: float | str) -> str:
    return difference if isinstance(difference, str) else f"it differs by {difference:.1e}"
