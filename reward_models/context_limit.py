"""The number of tokens a model has positions for, by its config, before weights are loaded.

A learned table ends; a rotation trained up to a length says little beyond it. Both are a limit here
(`max_position_embeddings`, times the factor where rotations are scaled). ALiBi and recurrences have
none. A soft prompt stands at the first positions; a prefix takes none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from reward_models.base_names import base_source
from reward_models.model_card import CARD, RewardCard
from reward_models.model_files import ADAPTER_CONFIG, check_source, first_line


def fixed_positions(config: PretrainedConfig) -> int | None:
    """The number of positions with rotations that do not depend on the batch; None: all of them."""
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
    """Raise ValueError where a text of so many tokens would change the numbers of others."""
    limit = fixed_positions(config)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"a text of {tokens} tokens: with more than {limit} the rotary positions of "
            f"'{config.model_type}' change for every text of a batch; expected {limit} at most"
        )


def limit_positions(model: PreTrainedModel) -> None:
    """From now on the model refuses positions beyond its fixed ones, wherever it is read."""
    if fixed_positions(model.config) is None:
        return
    refuse = partial(_refuse_beyond, config=model.config)
    for module in model.modules():
        if "rope_type" in vars(module):
            module.register_forward_pre_hook(refuse, with_kwargs=True)


def _refuse_beyond(
    _: nn.Module, given: tuple[object, ...], named: dict[str, object], config: PretrainedConfig
) -> None:
    positions_BL = named.get("position_ids", given[1] if len(given) > 1 else None)
    if isinstance(positions_BL, Tensor) and not isinstance(positions_BL, FakeTensor):
        require_fixed_positions(config, int(positions_BL.max()) + 1)


BASE_FILE = "base.json"
_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
# Their table's first rows, up to PAD's, are no positions.
_OFFSET = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod",
           "data2vec-text", "mpnet", "longformer"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ContextLimit:
    """Tokens that a model reads at most; `tokens` is None where there is no limit."""

    model: str
    tokens: int | None

    def at_most(self, tokens: int) -> int:
        """The smaller of a setting and this limit."""
        return tokens if self.tokens is None else min(tokens, self.tokens)

    def without(self, taken: int) -> "ContextLimit":
        """Return the limit that is left beside a soft prompt of so many embeddings."""
        return self if self.tokens is None else ContextLimit(self.model, self.tokens - taken)

    def require(self, tokens: int, what: str) -> None:
        """Raise ValueError where `what`, which has so many tokens, does not fit."""
        if self.tokens is not None and tokens > self.tokens:
            raise ValueError(
                f"{what}: {tokens} tokens, {self.model} has {self.tokens} positions; shorten them"
            )


def context_limit(source: str | Path, soft_prompt: int = 0) -> ContextLimit:
    """The room of a model's folder or hub name, of an adapter's folder, or of a reward model's.

    `soft_prompt` is the length of one that is to be trained on it. ValueError where no config is.
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
    """The positions that a config allows; None where there is no limit.

    Rotations that depend on the batch are a limit up to where they do not.
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
    """The positions beyond which a forward pass fails: a table's, or of rotations that change."""
    rotates = config.get_text_config().to_dict().get("rope_parameters")
    return fixed_positions(config) if rotates else max_positions(config)


def _scaled(rope: Mapping[str, Any], limit: int) -> list[int]:
    """Lengths that rotations are scaled to, for all layers or by kind of layer."""
    if any(isinstance(part, Mapping) for part in rope.values()):
        return [n for part in rope.values() if isinstance(part, Mapping)
                for n in _scaled(part, limit)]  # fmt: skip
    kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor")
    if kind in (None, "default") or not isinstance(factor, int | float):
        return []
    return [int(factor * (rope.get("original_max_position_embeddings") or limit))]


def _base(folder: Path, *, is_adapter: bool) -> str | Path:
    """Whose config says how many positions there are."""
    if (folder / CARD).is_file():
        card, _ = RewardCard.read(folder)
        on_base = is_adapter or card.head_only
        return base_source(card.base, folder, card.base_hash) if on_base else folder
    base = _json(folder / BASE_FILE)
    if is_adapter and base:
        return base_source(base["name"], folder, base["weights_sha256"])
    return folder


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
