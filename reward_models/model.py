"""A reward model: a transformer without its unembedding, a scalar head, and a bias.

    score = head . h(last real token) + bias            (Ouyang et al. 2022, section 3.5)

The head starts as N(0, 1 / sqrt(d + 1)) and the bias at 0. The bias is set after training, so that
demonstrations score 0 on average (appendix C.2); the ranking loss does not depend on it. The same
module, applied at every token, is the value function that starts from the reward model (appendix
C.4).

Dimension key:  B sequences,  K scored tokens of a sequence,  L tokens,  D hidden size.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.atomic_files import written_aside
from reward_models.backbone import (
    Backbone,
    absolute_name,
    accepts_positions,
    base_token_rows,
    hidden_size,
    load_causal_lm,
    load_saved_backbone,
    require_finite,
    transformer,
    weights_hash,
)
from reward_models.compat import whole_modules
from reward_models.model_card import RewardCard
from reward_models.model_files import (
    base_name,
    check_whole,
    first_line,
    resolve_base_name,
    write_base_name,
)
from reward_models.packed_attention import PackedSegments, enable_packing
from reward_models.weights.formats import FLOAT32, WeightFormat
from reward_models.weights.layouts import add_head, as_classifier

HEAD = "head.safetensors"


class RewardModel(nn.Module):
    """Backbone, scalar head and bias.

    `backbone` is a bare transformer, or a PEFT model around a causal language model.
    """

    def __init__(self, backbone: Backbone, card: RewardCard) -> None:
        super().__init__()
        self.backbone = backbone
        self.card = card
        self._takes_positions = accepts_positions(transformer(backbone))
        # accelerate reads here which modules FSDP2 shards, each as a whole.
        self._no_split_modules = whole_modules(transformer(backbone))
        size = hidden_size(transformer(backbone))
        self.head = nn.Linear(size, 1, bias=False, dtype=torch.float32)
        self.inner = _inner(size, card.inner_width) if card.inner_width else None
        # A parameter, so that a critic may train it; the ranking loss gives it no gradient.
        # Of one dimension, because neither DeepSpeed nor FSDP2 divides a scalar.
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32), requires_grad=False)

    @classmethod
    def from_base(cls, source: str | Path, seed: int) -> Self:
        """Return a new reward model on a causal language model, all of it trainable."""
        return cls.on(load_causal_lm(source), seed, base=str(source))

    @classmethod
    def on(cls, model: Backbone, seed: int, *, base: str) -> Self:
        """Return a new reward model on a loaded causal language model, its head drawn from `seed`.

        A PEFT model stays whole, so that its adapter can be saved alone; of any other model the
        unembedding is dropped.
        """
        backbone = model if isinstance(model, PeftModel) else transformer(model)
        rows = base_token_rows(model, base)
        card = RewardCard(absolute_name(base), weights_hash(model, rows), rows)
        new = cls(backbone, card)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            deviation = 1.0 / math.sqrt(new.head.in_features + 1)
            new.head.weight.normal_(0.0, deviation, generator=generator)
        return new.eval()

    @classmethod
    def probe(
        cls, model: PreTrainedModel, seed: int, *, base: str, pooling: str, inner_width: int
    ) -> Self:
        """Return a reward model with only the head trainable; `save` leaves the rest out."""
        new = cls.on(model, seed, base=base)
        card = replace(new.card, head_only=True, pooling=pooling, inner_width=inner_width)
        probe = cls(new.backbone, card)
        probe.head.load_state_dict(new.head.state_dict())
        probe.backbone.requires_grad_(False)
        return probe.eval()

    @classmethod
    def load(
        cls,
        path: str | Path,
        base: PreTrainedModel | None = None,
        weights: WeightFormat = FLOAT32,
    ) -> Self:
        """Load what `save` wrote: equal scores, in eval mode; trained parameters stay trainable.

        A loaded causal language model, `base`, is used where the saved model belongs on it. What is
        loaded here is in the format `weights`; the head is float32.
        """
        folder = Path(path)
        card, bias = RewardCard.read(folder)
        backbone = load_saved_backbone(folder, card, base, weights)
        on_base = card.head_only or isinstance(backbone, PeftModel)
        base_now = str(transformer(backbone).config.name_or_path) if on_base else card.base
        model = cls(
            backbone, replace(card, base=absolute_name(resolve_base_name(base_now, folder)))
        )
        model._load_head(folder / HEAD)
        with torch.no_grad():
            model.bias.fill_(bias)
        return model.eval()

    def save(self, path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write weights, config, card and the tokenizer, if given; of an adapted model the adapter.

        transformers and PEFT load it too (see `weights.layouts`); the head beside it is float32. A
        folder at `path` is replaced once all is written.
        """
        card = replace(self.card, base=base_name(self.card.base, Path(path)))
        inner = {} if self.inner is None else self.inner.state_dict(prefix="inner.")
        head = {"head.weight": self.head.weight.detach(), **inner}
        with written_aside(Path(path)) as aside:
            aside.mkdir()
            if isinstance(self.backbone, PeftModel):
                self.backbone.save_pretrained(str(aside), save_embedding_layers=False)
                write_base_name(aside, card.base)
                add_head(aside, self.head.weight)
            elif not card.head_only:
                pad = None if tokenizer is None else tokenizer.pad_token_id
                whole = as_classifier(self.backbone, self.head.weight, self.bias.item(), pad)
                (whole or self.backbone).save_pretrained(str(aside))
            (aside / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            save_file({name: tensor.contiguous() for name, tensor in head.items()}, aside / HEAD)
            if tokenizer is not None:
                tokenizer.save_pretrained(str(aside))
            card.write(aside, self.bias.item())

    def forward(
        self,
        ids_BL: Tensor,
        mask: Tensor | PackedSegments,
        positions_BL: Tensor,
        last_BK: Tensor | None = None,
    ) -> Tensor:
        """Return float32 scores: reward_B at each row's last real token, or reward_BK at `last_BK`.

        `mask` is mask_BL (True = a real token; padding on either side), or the segments of the only
        row, which need `last_BK`. Raises ValueError for segments where the attention is not sdpa.
        """
        return self.scores(self.states(ids_BL, mask, positions_BL, last_BK))

    def states(
        self,
        ids_BL: Tensor,
        mask: Tensor | PackedSegments,
        positions_BL: Tensor,
        last_BK: Tensor | None = None,
    ) -> Tensor:
        """Return the head's inputs for `forward`'s scores: state_BD, or state_BKD at `last_BK`."""
        hidden_BLD = self._hidden(ids_BL, mask, positions_BL)
        if last_BK is None:
            assert isinstance(mask, Tensor)
            return _take(hidden_BLD, last_real(mask)[:, None]).squeeze(1)
        return _take(hidden_BLD, last_BK)

    def values(self, ids_BL: Tensor, mask_BL: Tensor, positions_BL: Tensor) -> Tensor:
        """Return value_BL in float32: the score at every token; meaningless outside the mask."""
        return self.scores(self._hidden(ids_BL, mask_BL, positions_BL))

    def set_bias(self, mean_score: float) -> None:
        """Shift all scores so that texts which scored `mean_score` on average score 0."""
        with torch.no_grad():
            self.bias.sub_(mean_score)

    def set_scale(self, deviation: float) -> None:
        """Divide all scores by `deviation`, bias included, and record it in the card.

        It is part of the head, so a critic that starts from this model starts at the same scale.
        Raises ValueError for a deviation of 0, where all scores are equal.
        """
        if not deviation > 0.0:
            raise ValueError(f"scores have a deviation of {deviation}: there is no scale to them")
        with torch.no_grad():
            self.head.weight.div_(deviation)
            self.bias.div_(deviation)
        self.card = replace(self.card, divided_by=self.card.divided_by * deviation)

    def record_training(self, tokenizer: str, label_kinds: set[str]) -> None:
        """Record the tokenizer's hash and the kinds of labels in the card."""
        self.card = replace(self.card, tokenizer=tokenizer, label_kinds=tuple(sorted(label_kinds)))

    def _load_head(self, path: Path) -> None:
        """Load the head that `save` wrote; ValueError where it is another model's."""
        check_whole(path)
        parts: dict[str, nn.Module] = {"head": self.head}
        parts |= {} if self.inner is None else {"inner": self.inner}
        try:
            nn.ModuleDict(parts).load_state_dict(load_file(path))
        except RuntimeError as error:
            raise ValueError(f"{path}: not the head of this model ({first_line(error)})") from None
        require_finite(self.head, path)

    def _hidden(
        self, ids_BL: Tensor, mask: Tensor | PackedSegments, positions_BL: Tensor
    ) -> Tensor:
        backbone = transformer(self.backbone)
        if isinstance(mask, PackedSegments):
            enable_packing(backbone)
            inputs = mask.as_inputs()
        else:
            ids_BL = ids_BL.masked_fill(~mask.bool(), 0)  # a PAD may have no row in the embedding
            inputs = {"attention_mask": mask.long()}
        if self._takes_positions:
            inputs["position_ids"] = positions_BL
        hidden: Tensor = backbone(input_ids=ids_BL, use_cache=False, **inputs).last_hidden_state
        return _running_mean(hidden, mask) if self.card.pooling == "mean" else hidden

    def scores(self, hidden: Tensor) -> Tensor:
        """Return the head's scores of hidden states (..., D) in float32, under autocast too."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self.head.weight.dtype)
            if self.inner is not None:
                hidden = hidden + self.inner(hidden)
            score: Tensor = self.head(hidden).squeeze(-1) + self.bias
        return score


def _inner(size: int, width: int) -> nn.Sequential:
    """Return a residual layer before the head, which adds nothing at first."""
    last = nn.Linear(width, size)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(size, width), nn.GELU(), last)


def _running_mean(hidden_BLD: Tensor, mask: Tensor | PackedSegments) -> Tensor:
    """Return the mean of a row's real hidden states up to every token; ValueError for segments."""
    if isinstance(mask, PackedSegments):
        raise ValueError("mean pooling needs a row for each response")
    hidden_BLD = hidden_BLD.float()
    weight_BL1 = mask[..., None].to(hidden_BLD.dtype)
    count_BL1 = weight_BL1.cumsum(1).clamp(min=1)
    return (hidden_BLD * weight_BL1).cumsum(1) / count_BL1


def last_real(mask_BL: Tensor) -> Tensor:
    """Return last_B, the index of each row's last True, wherever its padding is."""
    index_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    return torch.where(mask_BL.bool(), index_L, -1).amax(1).clamp(min=0)


def _take(hidden_BLD: Tensor, last_BK: Tensor) -> Tensor:
    return hidden_BLD.gather(1, last_BK[:, :, None].expand(-1, -1, hidden_BLD.shape[2]))
