"""Rotary positions that depend on the longest text of a batch, held to where they do not.

LongRoPE turns every row of a batch by other factors as soon as one text is longer than the original
length, and dynamic NTK as soon as one is longer than the model's: a text's numbers would depend on
its neighbours, and those of a text that grows beyond it on the day it was sampled. Up to there all
rows are turned alike, so texts beyond it are refused.

Dimension key:  B rows,  L tokens of a row.
"""

from functools import partial

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PretrainedConfig, PreTrainedModel


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
