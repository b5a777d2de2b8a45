"""The way to decode a model's rows, found by decoding a few short texts with and without its cache.

An architecture that does not know `past_key_values` takes it without a word and samples every token
without its history. So before a model's first token, prompts of several lengths are read in parts,
tokens are appended and a row is dropped; the next token's logits are compared with those of plain
forward passes. What agrees first is used:

    cache, prompts in parts  |  cache, prompts whole (recurrences)  |  no cache (`UncachedRows`)

Dimension key:  B rows,  V vocabulary.
"""

import logging
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reward_models.model_files import first_line
from reward_models.packed_attention import FORWARD_ERRORS, attention_windows, example_ids
from stages.forward_check import rounding
from stages.generation.kv_cache import LiveRows, Rows, RowSets, UncachedRows

log = logging.getLogger(__name__)

_PROMPTS = (3, 9, 9, 14)  # tokens; two rows have one prompt
_STEPS = 4  # tokens that are appended
_DROPPED_AFTER = 2

Key = tuple[str | None, bool, tuple[int, ...]]  # attention, several users, windows outgrown
Asked = list[tuple[list[int], int]]

_known: WeakKeyDictionary[PreTrainedModel, dict[Key, "Decoding"]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Decoding:
    """The way in which rows decode; `obstacle` is a reason against cache and prompts in parts."""

    cached: bool
    in_parts: bool
    obstacle: str | None = None

    def rows(self, model: PreTrainedModel, asked: Asked, sets: RowSets | None) -> Rows:
        """Rows that have read their prompts, which are sorted by length; see `LiveRows`."""
        if not self.cached:
            return UncachedRows(model, asked, sets)
        return LiveRows(model, asked, sets, None if self.in_parts else len(asked[-1][0]))


def decoding_of(model: PreTrainedModel, sets: RowSets | None, longest: int) -> Decoding:
    """Return the way to decode at most `longest` tokens; compared once a model, in eval mode.

    Warns where that is slower than a cache. Raises ValueError for a model that a later token tells
    something about an earlier one: no way to decode it agrees with how it is trained.
    """
    outgrown = tuple(window for window in attention_windows(model).values() if window < longest)
    key = (model.config._attn_implementation, sets is not None, outgrown)
    known = _known.setdefault(model, {})
    if key not in known:
        known[key] = _compared(model, sets, outgrown)
        if not known[key].cached:
            name = type(model).__name__
            log.warning(
                "%s samples without a cache, which is slower: %s", name, known[key].obstacle
            )
    return known[key]


def _compared(model: PreTrainedModel, sets: RowSets | None, outgrown: tuple[int, ...]) -> Decoding:
    lengths = [*_PROMPTS, *(window + 2 for window in outgrown)]
    prompts = [example_ids(model, length).tolist() for length in lengths]
    requests = [(prompt, 0) for prompt in sorted(prompts, key=len)]
    token_SB = example_ids(model, _STEPS * len(requests), 5).view(_STEPS, -1)
    expected = _logits(UncachedRows(model, requests, sets), token_SB)
    obstacle: str | None = None
    for part in (max(4, max(lengths) // 3), max(lengths)):  # each prompt but the shortest is cut
        try:
            rows = LiveRows(model, requests, sets, part, fill=prompts[0][1])
            logits = _logits(rows, token_SB)
            worst = max(float((a - b).abs().max()) for a, b in zip(logits, expected, strict=True))
            if worst <= rounding(expected[0]):
                return Decoding(True, part < max(lengths), obstacle)
            obstacle = f"its cache does not say what a whole pass says (differs by {worst:.1e})"
        except FORWARD_ERRORS as error:
            obstacle = f"its cache refused ({first_line(error)[:80]})"
    return Decoding(False, False, obstacle)


def _logits(rows: Rows, token_SB: Tensor) -> list[Tensor]:
    """logits_BV after the prompts and after each token; the second row is dropped on the way."""
    logits = [rows.logits_BV.float()]
    for step, token_B in enumerate(token_SB):
        if step == _DROPPED_AFTER:
            kept_B = [row for row in range(len(token_B)) if row != 1]
            rows.keep(torch.tensor(kept_B, device=token_B.device))
        rows.read(token_B[rows.row_B])
        logits.append(rows.logits_BV.float())
    return logits
