"""The number of tokens a model has positions for, from its config, before weights are loaded.

A learned table ends; a rotation is of little use beyond the length it was trained at. Both are a
limit here (`max_position_embeddings`, times the factor where rotations are scaled). ALiBi and
recurrences have none. A soft prompt stands at the first positions; a prefix takes none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from reward_models.model_card import CARD, RewardCard
from reward_models.model_files import (
    ADAPTER_CONFIG,
    BASE_FILE,
    base_source,
    check_source,
    first_line,
    peft_base,
)


def fixed_positions(config: PretrainedConfig) -> int | None:
    """Return how many positions have rotations that do not depend on the batch; None: all."""
    settings = config.get_text_config().to_dict()
    rope = settings.get("rope_parameters") or {}
    kinds = [rope] if "rope_type" in rope else [r for r in rope.values() if isinstance(r, dict)]
    limits = []
    for kind in kinds:
        if kind.get("rope_type") == "longrope":
            original = kind.get("original_max_position_embeddings")
            limits.append(original or settings.get("original_max_position_embeddings"))
        elif "dynamic" in str(kind.get("rope_type")):
            limits.append(settings.get("max_position_embeddings"))
    return min((int(limit) for limit in limits if limit), default=None)


def require_fixed_positions(config: PretrainedConfig, tokens: int) -> None:
    """Raise ValueError where a text of so many tokens would change the outputs of others."""
    limit = fixed_positions(config)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"a text of {tokens} tokens: with more than {limit} the rotary positions of "
            f"'{config.model_type}' change for every text of a batch; expected {limit} at most"
        )


def limit_positions(model: PreTrainedModel) -> None:
    """Let the model refuse positions beyond its fixed ones in every forward pass."""
    if fixed_positions(model.config) is None:
        return
    refuse = partial(_refuse_beyond, config=model.config)
    for module in model.modules():
        if "rope_type" in vars(module):
            module.register_forward_pre_hook(refuse, with_kwargs=True)


def _refuse_beyond(
    _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], config: PretrainedConfig
) -> None:
    positions_BL = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
    if type(positions_BL) is Tensor:  # the fake ones of a dry run have no values
        require_fixed_positions(config, int(positions_BL.max()) + 1)


_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
# The first rows of these architectures' tables, up to PAD's, are no positions.
_OFFSET = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "roberta-prelayernorm",
    "xmod",
    "data2vec-text",
    "mpnet",
    "longformer",
}


@dataclass(frozen=True, slots=True)
class ContextLimit:
    """The most tokens that a model takes; `tokens` is None where there is no limit."""

    model: str
    tokens: int | None

    def at_most(self, tokens: int) -> int:
        """Return the smaller of a setting and this limit."""
        return tokens if self.tokens is None else min(tokens, self.tokens)

    def without(self, taken: int) -> "ContextLimit":
        """Return the limit beside a soft prompt of so many embeddings."""
        return self if self.tokens is None else ContextLimit(self.model, self.tokens - taken)

    def require(self, tokens: int, what: str) -> None:
        """Raise ValueError where `what`, which has so many tokens, does not fit."""
        if self.tokens is not None and tokens > self.tokens:
            raise ValueError(
                f"{what}: {tokens} tokens, {self.model} has {self.tokens} positions; shorten them"
            )


def context_limit(source: str | Path, soft_prompt: int = 0) -> ContextLimit:
    """Return the limit of a model's folder or hub name, of an adapter's, or of a reward model's.

    `soft_prompt` is the length of one that is to be trained on it. ValueError without a config.
    """
    folder = Path(source)
    adapter = _json(folder / ADAPTER_CONFIG)
    own = int(adapter["length"]) if adapter.get("peft_type") == "SOFT_PROMPT" else 0
    base = _base(folder, is_adapter=bool(adapter))
    check_source(base)
    try:
        config = AutoConfig.from_pretrained(str(base))
    except (OSError, ValueError) as error:
        raise ValueError(f"{base}: no config of a model there ({first_line(error)})") from None
    return ContextLimit(str(source), max_positions(config)).without(max(own, soft_prompt))


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the positions that a config allows; None where there is no limit.

    Rotations that depend on the batch beyond some position are a limit there.
    """
    limits = [n for n in (_positions(config), fixed_positions(config)) if n is not None]
    return min(limits, default=None)


def _positions(config: PretrainedConfig) -> int | None:
    settings = config.get_text_config().to_dict()
    limit = next((settings[key] for key in _LIMITS if isinstance(settings.get(key), int)), None)
    if limit is None or limit <= 0 or settings.get("alibi"):
        return None
    if settings.get("model_type") in _OFFSET:
        return int(limit) - int(settings.get("pad_token_id") or 0) - 1
    scaled = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    return max([int(limit), *_scaled(scaled, int(limit))])


def hard_position_limit(config: PretrainedConfig) -> int | None:
    """Return the positions beyond which a forward pass fails: a table's, or of fixed rotations."""
    rotates = config.get_text_config().to_dict().get("rope_parameters")
    return fixed_positions(config) if rotates else max_positions(config)


def _scaled(rope: Mapping[str, Any], limit: int) -> list[int]:
    """Return the lengths that rotations are scaled to, for all layers or by kind of layer."""
    if any(isinstance(part, Mapping) for part in rope.values()):
        parts = [part for part in rope.values() if isinstance(part, Mapping)]
        return [length for part in parts for length in _scaled(part, limit)]
    kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor")
    if kind in (None, "default") or not isinstance(factor, int | float):
        return []
    return [int(factor * (rope.get("original_max_position_embeddings") or limit))]


def _base(folder: Path, *, is_adapter: bool) -> str | Path:
    """Return the model whose config has the number of positions."""
    if (folder / CARD).is_file():
        card, _ = RewardCard.read(folder)
        on_base = is_adapter or card.head_only
        return base_source(card.base, folder, card.base_hash) if on_base else folder
    base = _json(folder / BASE_FILE)
    if is_adapter and base:
        return base_source(base["name"], folder, base["weights_sha256"])
    return peft_base(folder) if is_adapter else folder


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
