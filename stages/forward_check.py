"""Checks that a model's outputs for a text do not depend on padding or on later tokens.

Architectures differ in what they do with padding and positions, and many silently ignore arguments
that they do not know. So each is run on two short texts, alone and together:

    alone          a a a a a a a        b b b
    padded right   a a a a a a a        b b b . . . .      in SFT, reward models and scoring
    padded left    a a a a a a a        . . . . b b b      in PPO's rows and with a KV cache

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
from reward_models.weights.formats import rounding
from stages.data.padding import positions

LONG, SHORT = 9, 4  # tokens of the examples
ROUNDING = 1e-4  # of the largest number, for float32
SMALL = 1 << 20  # elements of a parameter whose gradient is checked
Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # ids_BL, mask_BL, positions_BL -> out_BLV


def check_forward(model: PreTrainedModel, source: object) -> None:
    """Raise ValueError unless the model is causal, and padding changes nothing.

    Also where no reward model could be made of it. `source` is where it came from. Its mode,
    weights and the random state do not change.
    """
    examples = _examples(model, LONG)
    name = f"{source}: {type(model).__name__}"
    try:
        require_backbone(model, source)
        with torch.no_grad():
            alone = [logits_of(model)(ids, torch.ones_like(ids).bool(), None) for ids in examples]
            later_1L = examples[0].clone()
            later_1L[0, -1] = later_1L[0, 0]
            changed = logits_of(model)(later_1L, torch.ones_like(later_1L).bool(), None)
    except ValueError:
        raise
    except FORWARD_ERRORS as error:
        raise ValueError(f"{name} fails on a text ({first_line(error)[:120]})") from None
    tolerance = tolerance_of(model, alone[0])
    if difference(model, changed[:, :-1], alone[0][:, :-1]) > tolerance:
        raise ValueError(
            f"{name} lets a later token change the logits of earlier ones; expected a causal "
            "language model (an encoder is none)"
        )
    gap = _padded_difference(logits_of(model), model, examples, alone, "right")
    if isinstance(gap, str) or not gap <= tolerance:
        raise ValueError(
            f"{name} gives a text other logits beside a longer one, padded on the right with "
            f"positions from 0 ({_in_words(gap)}); expected the same"
        )


def padding_side(forward: Forward, model: PreTrainedModel, longest: int) -> Side:
    """Return the side on which padding does not change a row's outputs; left if it can be.

    `model` is what `forward` calls in the end; one of the examples is longer than its windows, if
    texts of `longest` tokens are. Raises ValueError where neither side will do.
    """
    longer = [window + SHORT for window in attention_windows(model).values() if window < longest]
    examples = _examples(model, max(LONG, *longer) if longer else LONG)
    whole = [(ids, torch.ones_like(ids).bool()) for ids in examples]
    with torch.no_grad():
        alone = [forward(ids, mask, positions(mask)) for ids, mask in whole]
    refusals: list[str] = []
    for side in SIDES:
        gap = _padded_difference(forward, model, examples, alone, side)
        if not isinstance(gap, str) and gap <= tolerance_of(model, alone[0]):
            if _has_finite_gradients(forward, model, *_padded(examples, side)):
                return side
            gap = "a gradient is not finite"
        refusals.append(f"{side}: {_in_words(gap)}")
    raise ValueError(
        f"{type(model).__name__} gives a text other outputs beside a longer one than alone, "
        f"wherever it is padded ({'; '.join(refusals)})"
    )


def tolerance_of(model: nn.Module, out: Tensor) -> float:
    """Return the tolerance of `difference` between two ways to compute such outputs."""
    return rounding(model, ROUNDING) * float(out.abs().max()) + 1e-6


def difference(model: nn.Module, a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two outputs of a model; in 16 bits or fewer the mean.

    Real models magnify roundings in some numbers of an example without sense: by a third of the
    largest logit in SmolLM2 in bfloat16.
    """
    apart = (a.float() - b.float()).abs()
    return float(apart.max() if rounding(model, ROUNDING) == ROUNDING else apart.mean())


def _padded_difference(
    forward: Forward, model: nn.Module, examples: list[Tensor], alone: list[Tensor], side: Side
) -> float | str:
    """Return the difference of the examples' outputs from those alone, or the model's error."""
    ids_BL, mask_BL = _padded(examples, side)
    try:
        with torch.no_grad():
            out_BLV = forward(ids_BL, mask_BL, positions(mask_BL))
    except FORWARD_ERRORS as error:
        return first_line(error)[:80]
    rows = zip(out_BLV, mask_BL, alone, strict=True)
    return max(difference(model, out_LV[mask_L], one[0]) for out_LV, mask_L, one in rows)


def _padded(examples: list[Tensor], side: Side) -> tuple[Tensor, Tensor]:
    """Return ids_BL, filled up with a token of a text, and mask_BL.

    A model's own PAD may be a row of zeros that leaves no trace until it is trained.
    """
    width = max(ids.shape[1] for ids in examples)
    ids_BL = examples[0][0, 1].expand(len(examples), width).clone()
    mask_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
    for row, ids in enumerate(examples):
        columns = slice(width - ids.shape[1], width) if side == "left" else slice(ids.shape[1])
        ids_BL[row, columns], mask_BL[row, columns] = ids[0], True
    return ids_BL, mask_BL


def _has_finite_gradients(
    forward: Forward, model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor
) -> bool:
    """Return true where the gradients of embeddings and small parameters are finite.

    A root of padding's zeros has none, though no output of a text depends on it.
    """
    table = token_embedding(model)
    embedded: list[Tensor] = []

    def capture(_: nn.Module, __: object, output: Tensor) -> Tensor:
        leaf = output if output.requires_grad else output.detach().requires_grad_()
        embedded.append(leaf)
        return leaf.clone()  # which a model may change in place

    handle = table.register_forward_hook(capture)
    small = [p for p in model.parameters() if p.requires_grad and p.numel() <= SMALL]
    try:
        with torch.enable_grad():
            total = forward(ids_BL, mask_BL, positions(mask_BL))[mask_BL].float().sum()
            gradients = torch.autograd.grad(total, [embedded[0], *small], allow_unused=True)
    finally:
        handle.remove()
    if gradients[0] is not None and table.padding_idx == 0:  # what padding is filled up with
        gradients = (gradients[0][mask_BL], *gradients[1:])
    return all(
        bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None
    )


def logits_of(model: PreTrainedModel) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the forward pass of a causal language model; without positions, of unpadded rows."""

    def forward(ids_BL: Tensor, mask_BL: Tensor, positions_BL: Tensor | None) -> Tensor:
        given = {}
        if positions_BL is not None:
            given = {"attention_mask": mask_BL.long(), "position_ids": positions_BL}
        logits_BLV: Tensor = model(input_ids=ids_BL, use_cache=False, **given).logits
        return logits_BLV.float()

    return forward


def _examples(model: PreTrainedModel, longest: int) -> list[Tensor]:
    return [example_ids(model, longest)[None], example_ids(model, SHORT, LONG)[None]]


def _in_words(gap: float | str) -> str:
    return gap if isinstance(gap, str) else f"it differs by {gap:.1e}"
