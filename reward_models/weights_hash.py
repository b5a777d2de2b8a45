"""The hash of a base's weights: what an adapter or a probe was trained on, and nothing later.

A PAD that a tokenizer lacks gets a row in the token tables as a model is loaded. It is not the
base's own: `widen` remembers how many rows are, and a hash counts those alone.
"""

import hashlib
from collections.abc import MutableMapping
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AutoConfig, PreTrainedModel

from reward_models.model_folder import CONFIG

_own_rows: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()


def widen(model: PreTrainedModel, rows: int) -> None:
    """Give the token tables `rows` rows; a new row is the mean of the old ones, and none of them.

    Tables that have as many are left alone.
    """
    own = model.get_input_embeddings().get_parameter("weight").shape[0]
    if rows <= own:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for weight_VD in _tables(model):
            weight_VD[own:] = weight_VD[:own].mean(dim=0)
            _own_rows[weight_VD] = own


def own_rows(model: nn.Module, source: str = "") -> int:
    """Return the number of token rows that are the base's own: no more than its `source` has."""
    weight_VD = _tables(_base(model))[0]
    own = _own_rows.get(weight_VD, weight_VD.shape[0])
    if not (Path(source) / CONFIG).is_file():
        return own
    config = AutoConfig.from_pretrained(source).get_text_config()
    return min(own, int(config.vocab_size))


def weights_hash(model: nn.Module, rows: int | None = None) -> str:
    """sha256 over names, shapes and float32 values of the base's weights, adapters left out.

    Buffers that are saved count too. Of the token tables the first `rows` count; None: the base's
    own.
    """
    base = _base(model)
    tables = {id(weight) for weight in _tables(base)}
    counted = own_rows(base) if rows is None else rows
    left_out = adapter_tensors(base)
    saved = base.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in sorted(saved.items(), reverse=True)}
    digest = hashlib.sha256()
    for name, tensor in sorted(saved.items()):
        if id(tensor) in left_out or first[id(tensor)] != name:
            continue
        weight = tensor.detach()[:counted] if id(tensor) in tables else tensor.detach()
        digest.update(f"{name.replace('.base_layer.', '.')} {tuple(weight.shape)}".encode())
        digest.update(weight.float().cpu().contiguous().flatten().numpy().data)
    return digest.hexdigest()


def adapter_parameters(model: nn.Module) -> set[int]:
    """The ids of all parameters that adapters hold beside the modules they wrap."""
    return {id(p) for child in _adapters(model) for p in child.parameters()}


def adapter_tensors(model: nn.Module) -> set[int]:
    """The ids of all parameters and buffers that adapters hold beside what they wrap."""
    buffers = {id(b) for child in _adapters(model) for b in child.buffers()}
    return adapter_parameters(model) | buffers


def _adapters(model: nn.Module) -> list[nn.Module]:
    return [
        child
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for name, child in layer.named_children()
        if name != "base_layer"
    ]


def _base(model: nn.Module) -> PreTrainedModel:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def _tables(base: PreTrainedModel) -> list[Tensor]:
    """The weights of the embedding and of the unembedding, where there is one."""
    unembedding = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    modules = (base.get_input_embeddings(), unembedding)
    bare = [m.get_base_layer() if isinstance(m, BaseTunerLayer) else m for m in modules]
    return [m.weight for m in bare if isinstance(m, nn.Embedding | nn.Linear)]
