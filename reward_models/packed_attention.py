"""Many texts in one row of tokens, kept apart by attention: nothing is padded.

A stem is a text of its own, whose tokens attend to the earlier ones. A branch continues a stem: its
tokens attend to all of that, and to the earlier ones of their own branch. So K responses to a
prompt are a stem and K branches, and the prompt is computed once:

    tokens   p p p a a a a b b q q c       a and b are branches of p, c is one of q

Every layer takes the row as it is. Attention alone spreads its queries, keys and values over padded
rows, one a segment, and gathers the outputs: it computes Q^2 + K T (Q + T) products of tokens for a
prompt of Q tokens and K responses of T, where a mask over the row takes (Q + K T)^2.

Dimension key:  N tokens,  P segments,  S stems of Q tokens at most,  R branches of T at most,
M = S Q + R T cells of padded rows,  H heads,  D head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    flash_attention_mask,
    sdpa_mask,
)

from reward_models.backbone import token_embedding
from reward_models.compat import attention_name, set_attention_name
from reward_models.model_files import first_line
from reward_models.weights.formats import rounding

STEM = -1
ATTENTION = "sdpa_packed"
FLASH = ("flash_attention_2", "flash_attention_3")  # which take texts of any lengths in a row
PACKED = "_packed"
WINDOWS = ("sliding_window", "window_size", "attention_window", "attention_chunk_size")
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
# query_BHQD, key_BHKD, value_BHKD, additive mask_B1QK or None = causal  ->  result_BQHD
PrependKeys = Callable[[Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor, Tensor]]
# key_BHKD, value_BHKD, mask and Q  ->  keys, values and mask with more columns before those
PrependFor = Callable[[nn.Module, Tensor, Tensor], PrependKeys | None]
# module, key_BHKD, value_BHKD  ->  what prepends keys there, if anything


@dataclass(frozen=True, slots=True)
class VariableLengths:
    """Segments, in the row's order, for attention that takes queries and keys of any lengths.

    A branch's keys are those of its stem before its own, which `key_from_K` gathers; its queries
    are the last of them, as causal attention has it.
    """

    key_from_K: Tensor
    cu_seq_lens_q: Tensor
    cu_seq_lens_k: Tensor
    max_length_q: int
    max_length_k: int

    @classmethod
    def of(cls, segment_P3: Tensor) -> Self:
        """Take the table of `PackedSegments.of`."""
        stems = [(begin, count) for begin, count, stem in segment_P3.tolist() if stem == STEM]
        keys: list[int] = []
        query_lengths: list[int] = []
        key_lengths: list[int] = []
        for begin, count, stem in sorted(segment_P3.tolist()):
            first, before = (0, 0) if stem == STEM else stems[stem]
            keys += [*range(first, first + before), *range(begin, begin + count)]
            query_lengths.append(count)
            key_lengths.append(before + count)
        device = segment_P3.device
        ends = (torch.tensor([0, *lengths]).cumsum(0) for lengths in (query_lengths, key_lengths))
        cu_seq_lens_q, cu_seq_lens_k = (end.int().to(device) for end in ends)
        return cls(
            key_from_K=torch.tensor(keys, device=device),
            cu_seq_lens_q=cu_seq_lens_q,
            cu_seq_lens_k=cu_seq_lens_k,
            max_length_q=max(query_lengths),
            max_length_k=max(key_lengths),
        )

    def as_inputs(self) -> dict[str, Any]:
        """Return the names under which transformers' flash attention takes the lengths."""
        names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        values = (self.cu_seq_lens_q, self.cu_seq_lens_k, self.max_length_q, self.max_length_k)
        return dict(zip(names, values, strict=True))


@dataclass(frozen=True, slots=True)
class PackedSegments:
    """The cells of a row's tokens in padded rows, stems first, and the stem of each branch.

    `from_M` is the token in each cell (any, in an empty one), `to_N` each token's cell.
    """

    stems: tuple[int, int]  # S, Q
    branches: tuple[int, int]  # R, T
    from_M: Tensor
    to_N: Tensor
    stem_R: Tensor
    mask_R1TK: Tensor  # K = Q + T
    segment_P3: Tensor
    _variable: list[VariableLengths] = field(default_factory=list)

    @classmethod
    def of(cls, segment_P3: Tensor) -> Self:
        """Take each segment's first token, number of tokens, and `STEM` or the number of its stem.

        Together the segments hold every token of the row once; each has at least one.
        """
        begin_P, count_P, stem_P = segment_P3.unbind(1)
        is_stem_P = stem_P == STEM
        stem_SQ, real_SQ = _padded(begin_P[is_stem_P], count_P[is_stem_P])
        branch_RT, real_RT = _padded(begin_P[~is_stem_P], count_P[~is_stem_P])
        from_M = torch.cat([stem_SQ.flatten(), branch_RT.flatten()])
        real_M = torch.cat([real_SQ.flatten(), real_RT.flatten()])
        cell_N = real_M.nonzero().squeeze(1)
        to_N = torch.empty_like(cell_N)
        to_N[from_M[cell_N]] = cell_N
        stem_R = stem_P[~is_stem_P]
        lengths = (real_SQ.shape[1], real_RT.shape[1])
        return cls(
            stems=(len(real_SQ), lengths[0]),
            branches=(len(real_RT), lengths[1]),
            from_M=from_M,
            to_N=to_N,
            stem_R=stem_R,
            mask_R1TK=_branch_mask(real_SQ[stem_R], lengths[1]),
            segment_P3=segment_P3,
        )

    @property
    def variable_lengths(self) -> VariableLengths:
        """The segments as flash attention takes them, computed once for all layers."""
        if not self._variable:
            self._variable.append(VariableLengths.of(self.segment_P3))
        return self._variable[0]

    def attend(self, attend: Attend, query_1HND: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return result_1NHD of attention within segments; keys may have fewer heads."""
        query_SHQD, query_RHTD = self._spread(query_1HND)
        key_SHQD, key_RHTD = self._spread(key)
        value_SHQD, value_RHTD = self._spread(value)
        result_MHD = attend(query_SHQD, key_SHQD, value_SHQD, None).flatten(0, 1)
        if self.branches[0]:
            result_RTHD = attend(
                query_RHTD,
                torch.cat([self._of_stem(key_SHQD), key_RHTD], 2),
                torch.cat([self._of_stem(value_SHQD), value_RHTD], 2),
                self.mask_R1TK.to(query_1HND.dtype),
            )
            result_MHD = torch.cat([result_MHD, result_RTHD.flatten(0, 1)])
        return result_MHD.index_select(0, self.to_N)[None]

    def as_inputs(self) -> dict[str, Any]:
        """Return a transformer's arguments beside tokens and positions.

        The mask is one that transformers pass on as it is: where `segments` do not arrive, every
        token attends to all others, which no comparison overlooks.
        """
        blank_1111 = torch.zeros(1, 1, 1, 1, device=self.to_N.device)
        return {"attention_mask": blank_1111, "segments": self}

    def _spread(self, x_1HND: Tensor) -> tuple[Tensor, Tensor]:
        x_NHD = x_1HND[0].transpose(0, 1)
        (stems, longest), (branches, length) = self.stems, self.branches
        x_MHD = x_NHD.index_select(0, self.from_M)
        x_S, x_R = torch.split(x_MHD, [stems * longest, branches * length])
        heads = x_NHD.shape[1:]
        x_SQHD, x_RTHD = x_S.view(stems, longest, *heads), x_R.view(branches, length, *heads)
        return x_SQHD.transpose(1, 2), x_RTHD.transpose(1, 2)

    def _of_stem(self, x_SHQD: Tensor) -> Tensor:
        if len(x_SHQD) == 1:
            return x_SHQD.expand(self.branches[0], -1, -1, -1)
        return x_SHQD.index_select(0, self.stem_R)


def segment_table(segments: Sequence[tuple[int, int, int]]) -> Tensor:
    """Return segment_P3 for `PackedSegments.of`."""
    return torch.tensor(segments, dtype=torch.long).view(-1, 3)


def uses_sdpa(model: PreTrainedModel) -> bool:
    """Return true where the attention is torch's, or one of this project's on top of it."""
    return str(attention_name(model.config)).startswith("sdpa")


def attention_windows(model: PreTrainedModel) -> dict[str, int]:
    """Return the lengths beyond which some layers do not attend back, by their names."""
    settings = model.config.to_dict()
    return {name: settings[name] for name in WINDOWS if isinstance(settings.get(name), int)}


def shorter_window(model: PreTrainedModel, text_tokens: int) -> str | None:
    """Return the obstacle that a window is shorter than a text: segments are given no window."""
    for name, window in attention_windows(model).items():
        if window < text_tokens:
            return f"its {name} of {window} is shorter than a text of {text_tokens} tokens"
    return None


def enable_packing(model: PreTrainedModel) -> None:
    """Let this model's attention take `segments`; ValueError where it is not sdpa or flash.

    Only `attention_mismatch` tells whether it is otherwise what it was.
    """
    name = attention_name(model.config)
    if name in FLASH:
        set_attention_name(model.config, f"{name}{PACKED}")
    elif name == "sdpa":
        set_attention_name(model.config, ATTENTION)
    elif not uses_sdpa(model) and not str(name).endswith(PACKED):
        raise ValueError(f"its attention is '{name}'; expected sdpa or flash_attention_2")


def register_attention(name: str, before_of: PrependFor = lambda *_: None) -> None:
    """Register `name` with transformers: torch's sdpa, within segments where it is given some.

    `before_of` returns what prepends keys to each module's own.
    """

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        segments: PackedSegments | None = None,
        **further: Any,  # which transformers passes to every attention function
    ) -> tuple[Tensor, None]:
        before = before_of(module, key, value)

        def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            causal = is_causal
            if before is not None:
                key, value, mask = before(key, value, mask, query.shape[2])
                causal = False
            given = (module, query, key, value, mask, dropout, scaling, causal)
            return sdpa_attention_forward(*given, **further)[0]

        if segments is not None:
            return segments.attend(attend, query, key, value), None
        return attend(query, key, value, attention_mask), None

    AttentionInterface.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask)


register_attention(ATTENTION)


def register_flash_attention(library: str) -> None:
    """Register a flash attention of transformers' again, within segments where it is given some."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        segments: PackedSegments | None = None,
        **further: Any,
    ) -> tuple[Tensor, None]:
        lengths: dict[str, Any] = {}
        if segments is not None:
            packed = segments.variable_lengths
            key, value = (x.index_select(2, packed.key_from_K) for x in (key, value))
            attention_mask, lengths = None, packed.as_inputs()
        # transformers looks in the config for the library to call.
        config = module.config
        assert isinstance(config, PretrainedConfig)
        name = attention_name(config)
        set_attention_name(config, library)
        try:
            output: Tensor = flash_attention_forward(
                module, query, key, value, attention_mask, **lengths | further
            )[0]
        finally:
            set_attention_name(config, name)
        return output, None

    AttentionInterface.register(f"{library}{PACKED}", attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(f"{library}{PACKED}", flash_attention_mask)


for _library in FLASH:
    register_flash_attention(_library)


def _padded(begin_P: Tensor, count_P: Tensor) -> tuple[Tensor, Tensor]:
    """Return token_PL of each segment, padded on the right with token 0, and real_PL."""
    longest = int(count_P.max()) if len(count_P) else 0
    index_L = torch.arange(longest, device=count_P.device)
    real_PL = index_L < count_P[:, None]
    return (begin_P[:, None] + index_L).masked_fill(~real_PL, 0), real_PL


def _branch_mask(real_RQ: Tensor, length: int) -> Tensor:
    """Return mask_R1TK: 0 at a branch's stem and its own earlier tokens, else the lowest number."""
    own_TT = torch.ones(length, length, dtype=torch.bool, device=real_RQ.device).tril()
    stem_RTQ = real_RQ[:, None].expand(-1, length, -1)
    seen_RTK = torch.cat([stem_RTQ, own_TT.expand(len(real_RQ), -1, -1)], -1)
    mask_RTK = torch.zeros(seen_RTK.shape, device=real_RQ.device)
    return mask_RTK.masked_fill_(~seen_RTK, torch.finfo(torch.float32).min)[:, None]


FORWARD_ERRORS = (ValueError, RuntimeError, TypeError, IndexError, AttributeError, KeyError)
ROUNDING = 1e-5  # of the largest hidden state: another kernel may sum in another order
TOKENS = 7  # of an example's row

Names = list[tuple[PretrainedConfig, str | None]]


def attention_mismatch(
    backbones: Sequence[PreTrainedModel], change: Callable[[], str | None]
) -> str | None:
    """Call `change`, which sets another attention and returns its own obstacle, and compare.

    Return that obstacle, or the difference of a backbone's outputs; None without any. With an
    obstacle, and where anything is raised, the backbones have the attention of before.
    """
    names = _attention_names(backbones)
    is_equal = False
    try:
        before = [plain_states(backbone) for backbone in backbones]
        try:
            obstacle = change()
            if obstacle is None:
                after = [plain_states(backbone) for backbone in backbones]
                shares = [rounding(backbone, ROUNDING) for backbone in backbones]
                obstacle = _difference(before, after, shares)
        except FORWARD_ERRORS as error:
            obstacle = f"its forward pass failed ({first_line(error)[:80]})"
        is_equal = obstacle is None
    finally:
        if not is_equal:
            for config, name in names:
                set_attention_name(config, name)
    return obstacle


def plain_states(backbone: PreTrainedModel) -> list[Tensor]:
    """Return states of two rows that differ in their last token, alone and beside padding."""
    ids_BL = example_ids(backbone, TOKENS).expand(2, -1).clone()
    ids_BL[1, -1] = ids_BL[1, 0]
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, : TOKENS // 2] = 0
    with torch.no_grad():
        plain: Tensor = backbone(input_ids=ids_BL, use_cache=False).last_hidden_state
        padded: Tensor = backbone(
            input_ids=ids_BL, attention_mask=mask_BL, use_cache=False
        ).last_hidden_state
    return [plain, padded[mask_BL.bool()]]


def example_ids(model: PreTrainedModel, tokens: int, first: int = 0) -> Tensor:
    """Return ids_L of an example text: tokens from all over the vocabulary, PAD aside."""
    rows = token_embedding(model).num_embeddings
    ids_L = (torch.arange(first, first + tokens, device=model.device) * 7919 + 3) % rows
    pads_L = ids_L == (-1 if model.config.pad_token_id is None else model.config.pad_token_id)
    return torch.where(pads_L, (ids_L + rows // 2) % rows, ids_L)


def _attention_names(backbones: Sequence[PreTrainedModel]) -> Names:
    """Return the configs and their attention, outer ones first: to set theirs sets inner ones'."""
    configs = [
        module.config
        for backbone in backbones
        for module in backbone.modules()
        if isinstance(module, PreTrainedModel)
    ]
    return [(config, attention_name(config)) for config in configs]


def _difference(
    before: Sequence[list[Tensor]], after: Sequence[list[Tensor]], shares: Sequence[float]
) -> str | None:
    for old, new, share in zip(before, after, shares, strict=True):
        tolerance = share * max(1.0, float(old[0].abs().max()))
        if float((new[0][0, :-1] - new[0][1, :-1]).abs().max()) > tolerance:
            return "its attention, under another name, attends to later tokens"
        worst = max(float((x - y).abs().max()) for x, y in zip(old, new, strict=True))
        if not worst <= tolerance:
            return f"its attention, under another name, differs by {worst:.1e}"
    return None
