"""Backbones: loading without dropout, the transformer inside, hashes of weights."""

import hashlib
import inspect
from collections.abc import Hashable, MutableMapping
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from reward_models.compat import chosen_attention, with_chosen_attention
from reward_models.context_limit import limit_positions
from reward_models.model_card import RewardCard
from reward_models.model_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    LOAD_ERRORS,
    base_source,
    check_adapter_folder,
    check_model_folder,
    check_source,
    first_line,
    read_json,
)
from reward_models.weights.formats import (
    FLOAT32,
    WeightFormat,
    loading_arguments,
    quantisation_of,
    settle,
)
from reward_models.weights.layouts import config_without_head
from reward_models.weights.stored import (
    file_stamp,
    files_hash,
    stored_dtypes,
    weight_files,
    widest,
)

Backbone = PreTrainedModel | PeftModel
BASE_DTYPE = "base_dtype"  # in a config: the dtype of the model that training began with
_HASHED_AT_ONCE = 1 << 22  # weights, which are copied in float32
HEADS = ("score.", "classifier.")  # the names of a classifier's head, as in PEFT
_KINDS = {
    AutoModelForCausalLM: "causal language model",
    AutoModelForSequenceClassification: "sequence classifier",
}


def load_causal_lm(source: str | Path, weights: WeightFormat = FLOAT32) -> PreTrainedModel:
    """Load the causal language model of a folder or hub name; ValueError where there is none."""
    return load_pretrained(AutoModelForCausalLM, str(source), weights)


def load_classifier(
    source: str | Path, *, without_head: bool = False, weights: WeightFormat = FLOAT32
) -> PreTrainedModel:
    """Load a sequence classifier with one label; ValueError where there is none.

    `without_head` its head may be missing, because an adapter brings it.
    """
    may_lack = HEADS if without_head else ()
    return load_pretrained(
        AutoModelForSequenceClassification, str(source), weights, may_lack=may_lack
    )


def load_saved_backbone(
    folder: Path, card: RewardCard, base: PreTrainedModel | None, weights: WeightFormat = FLOAT32
) -> Backbone:
    """Load a reward model's backbone: a whole one, or an adapter on the base that the card names.

    `base` is used if it is that one. Raises ValueError where the card's base is gone or changed.
    """
    adapted = (folder / ADAPTER_CONFIG).is_file()
    if not adapted and not card.head_only:
        if not _is_classifier(folder):  # an older folder has its head apart alone
            return load_pretrained(AutoModel, str(folder), weights)
        return transformer(load_classifier(folder, weights=weights))
    source = base_source(card.base, folder, card.base_hash)
    if base is None or absolute_name(str(base.config.name_or_path)) != absolute_name(source):
        base = load_causal_lm(source, weights)
    require_base(base, source, card.base_hash, card.base_rows, folder)
    if card.head_only:
        return transformer(base).requires_grad_(False)
    return load_adapter(base, folder, trainable=True, without_head=True)


def _is_classifier(folder: Path) -> bool:
    """Return true where a model was saved as a sequence classifier of transformers."""
    kinds = read_json(folder / CONFIG).get("architectures") if (folder / CONFIG).is_file() else None
    return any(str(kind).endswith("ForSequenceClassification") for kind in kinds or ())


def require_base(
    base: PreTrainedModel, source: str, sha256: str, rows: int | None, folder: Path
) -> None:
    """Raise ValueError unless the base loaded from `source` is the one of the adapter `folder`."""
    own = weights_hash(base, rows)
    if own != sha256:
        raise ValueError(
            f"{folder} was trained on base {sha256[:8]}…, {source} is {own[:8]}…: "
            "an adapter only fits the weights it was trained on"
        )


def load_adapter(
    base: PreTrainedModel, folder: Path, *, trainable: bool, without_head: bool = False
) -> PeftModel:
    """Load an adapter's folder on its base; ValueError unless all of it is there and fits.

    `without_head` a classifier's loads on a causal language model, and its head is left out.
    """
    kind = check_adapter_folder(folder)
    if kind not in {str(known.value) for known in PEFT_TYPE_TO_CONFIG_MAPPING}:
        raise ValueError(f"{folder / ADAPTER_CONFIG}: peft_type '{kind}' is of no known family")
    try:
        config = config_without_head(folder) if without_head else None
        adapter = PeftModel.from_pretrained(
            base, str(folder), is_trainable=trainable, config=config
        )
    except LOAD_ERRORS as error:
        raise ValueError(f"{folder}: its adapter does not load ({first_line(error)})") from None
    saved = folder / ADAPTER_WEIGHTS[0]
    if saved.is_file():
        with safe_open(saved, "pt") as file:
            names = set(file.keys())
        expected = get_peft_model_state_dict(adapter, save_embedding_layers=False)
        missing = sorted(set(expected) - names)
        if missing:
            raise ValueError(f"{saved}: {len(missing)} weights are missing, first {missing[0]}")
    require_finite(adapter, folder)
    return adapter


def absolute_name(name: str) -> str:
    """Return the name of a base in saved files: a folder's absolute path, a hub model's name."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def transformer(backbone: Backbone) -> PreTrainedModel:
    """Return the transformer itself, without the PEFT model and the unembedding around it."""
    model = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone
    inner = model.base_model
    children = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if inner is model and len(children) == 1:  # its attribute has an unusual name
        inner = children[0]
    assert isinstance(inner, PreTrainedModel)
    return inner


def require_backbone(model: PreTrainedModel, source: object) -> None:
    """Raise ValueError where a scalar head could not take the place of the unembedding.

    Decoders of encoder-decoders are only a part of what transformers saves and loads; and hidden
    states may be of another size than the embeddings.
    """
    backbone = transformer(model)
    name = f"{source}: {type(model).__name__}"
    known = MODEL_MAPPING.get(type(backbone.config), None)
    if type(backbone) not in (known if isinstance(known, tuple) else (known,)):
        raise ValueError(f"{name} is a part of another model; expected a language model of its own")
    ids_BL = torch.tensor([[1]], device=backbone.device)
    with torch.no_grad():
        size = backbone(input_ids=ids_BL, use_cache=False).last_hidden_state.shape[-1]
    embedded = hidden_size(backbone)
    if size != embedded:
        raise ValueError(
            f"{name} has hidden states of {size} numbers and embeddings of {embedded}; expected "
            "one size"
        )


def accepts_positions(backbone: PreTrainedModel) -> bool:
    """Return true where the forward pass takes positions; ALiBi and recurrences do not."""
    return "position_ids" in inspect.signature(backbone.forward).parameters


def hidden_size(backbone: PreTrainedModel) -> int:
    """Return the size of the hidden states, which is that of the embeddings."""
    return token_embedding(backbone).embedding_dim


def token_embedding(model: PreTrainedModel) -> nn.Embedding:
    """Return the token embedding, without an adapter around it."""
    table = model.get_input_embeddings()
    table = table.get_base_layer() if isinstance(table, BaseTunerLayer) else table
    assert isinstance(table, nn.Embedding)
    return table


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """Set every dropout rate and jitter of a config to 0, before the model is built.

    Scores must not depend on the module's mode. Routers of experts do not return their logits
    either: with them a step with a cache crashes, and a loss has another term.
    """
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        settings = part.to_dict()
        for name, value in settings.items():
            if ("drop" in name or "jitter" in name) and isinstance(value, float):
                setattr(part, name, 0.0)
        if settings.get("output_router_logits"):
            part.output_router_logits = False
    return config


def require_finite(model: nn.Module, source: object) -> None:
    """Raise ValueError where a weight is not a number, or infinite."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel() and weight.device.type != "meta":
            low, high = torch.aminmax(weight.detach())
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise ValueError(f"{source}: weight {name} is not finite; expected numbers")


Kind = type[AutoModel] | type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]


def load_pretrained(
    kind: Kind,
    source: str,
    weights: WeightFormat = FLOAT32,
    *,
    may_lack: tuple[str, ...] = (),
) -> PreTrainedModel:
    """Load the model of a folder or hub name in a format; a classifier with one label.

    Raises ValueError unless all weights are there, of the right shapes, and finite. Those whose
    names begin like one of `may_lack` may be missing.
    """
    check_source(source)
    if Path(source).is_dir():
        check_model_folder(Path(source))
    try:
        config = with_chosen_attention(without_dropout(AutoConfig.from_pretrained(source)))
    except LOAD_ERRORS as error:
        raise _no_model(kind, source, error) from None
    if kind is AutoModelForSequenceClassification:
        config.num_labels = 1
    arguments, was_quantised = loading_arguments(config, weights), quantisation_of(config)
    try:
        loaded: object = kind.from_pretrained(
            source, config=config, output_loading_info=True, **arguments
        )
    except LOAD_ERRORS as error:
        attention, reason = chosen_attention(), first_line(error)
        if attention is not None and ("attention" in reason.lower() or "attn" in reason):
            raise ValueError(f"{source}: attn_implementation is {attention}: {reason}") from None
        raise _no_model(kind, source, error) from None
    model, info = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    # A pooler is what AutoModel puts on top; nothing uses it.
    unneeded = ("pooler.", *may_lack)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(unneeded))
    if missing:
        raise ValueError(f"{source}: {len(missing)} weights are missing, the first is {missing[0]}")
    require_finite(model, source)
    limit_positions(model)
    settle(model, source)
    stored = stored_dtypes(source)
    if BASE_DTYPE not in vars(config):  # or else its files are float32 masters of narrower ones
        vars(model.config)[BASE_DTYPE] = str(widest(stored)).removeprefix("torch.")
    if was_quantised or not weights.exact_for(stored):
        _sources[_tables(model)[0]] = (kind, source)
    return model


def _no_model(kind: Kind, source: str, error: Exception) -> ValueError:
    return ValueError(f"{source}: no {_KINDS.get(kind, 'model')} there ({first_line(error)})")


_own_rows: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
# Where loading changed the values, by the token table: the hash is that of the files.
_sources: MutableMapping[Tensor, tuple[Kind, str]] = WeakTensorKeyDictionary()


def add_token_rows(model: PreTrainedModel, rows: int) -> None:
    """Enlarge smaller token tables to `rows` rows; a new row is the mean of the old ones."""
    own = model.get_input_embeddings().get_parameter("weight").shape[0]
    if rows <= own:
        return
    source = _sources.get(_tables(model)[0])
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for weight_VD in _tables(model):
            weight_VD[own:] = weight_VD[:own].mean(dim=0, dtype=torch.float32)
            _own_rows[weight_VD] = own
    if source is not None:
        _sources[_tables(model)[0]] = source


def base_token_rows(model: nn.Module, source: str = "") -> int:
    """Return the number of token rows that are the base's own: at most as many as `source` has."""
    weight_VD = _tables(_base(model))[0]
    own = _own_rows.get(weight_VD, weight_VD.shape[0])
    if not (Path(source) / CONFIG).is_file():
        return own
    config = AutoConfig.from_pretrained(source).get_text_config()
    return min(own, int(config.vocab_size))


def weights_hash(model: nn.Module, rows: int | None = None) -> str:
    """Return the sha256 over names, shapes and float32 values of a base's weights, no adapters.

    Saved buffers count too. Of the token tables the first `rows` count, by default the base's own.
    Where loading has changed the values, they are those of the files: so an adapter names one base,
    in whatever precision that is.
    """
    base = _base(model)
    source = _sources.get(_tables(base)[0])
    if source is not None:
        counted = base_token_rows(base) if rows is None else rows
        kind, name = source
        return _stored_hash(cast(Hashable, kind), name, counted, file_stamp(name))
    tables = {id(weight) for weight in _tables(base)}
    counted = base_token_rows(base) if rows is None else rows
    left_out = adapter_tensors(base)
    saved = base.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in sorted(saved.items(), reverse=True)}
    digest = hashlib.sha256()
    for name, tensor in sorted(saved.items()):
        if id(tensor) in left_out or first[id(tensor)] != name:
            continue
        weight = tensor.detach()[:counted] if id(tensor) in tables else tensor.detach()
        digest.update(f"{name.replace('.base_layer.', '.')} {tuple(weight.shape)}".encode())
        for part in weight.flatten().split(_HASHED_AT_ONCE):
            digest.update(part.float().cpu().numpy().data)
    return digest.hexdigest()


@lru_cache(maxsize=8)
def _stored_hash(kind: Hashable, source: str, rows: int, _: object) -> str:
    """Return the hash of a model's files, of quantised ones that of the bytes; `_` is their stamp.

    The model is loaded once more for it, on the CPU and in the dtype of its files.
    """
    if quantisation_of(AutoConfig.from_pretrained(source)) is not None:
        return files_hash(weight_files(source))
    exact = load_pretrained(cast(Kind, kind), source, WeightFormat(widest(stored_dtypes(source))))
    return weights_hash(exact, rows)


def adapter_parameters(model: nn.Module) -> set[int]:
    """Return the ids of all parameters of adapters."""
    return {id(p) for child in _adapters(model) for p in child.parameters()}


def adapter_tensors(model: nn.Module) -> set[int]:
    """Return the ids of all parameters and buffers of adapters."""
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
    """Return the weights of the embedding and, if there is one, of the unembedding."""
    unembedding = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    modules = (base.get_input_embeddings(), unembedding)
    bare = [m.get_base_layer() if isinstance(m, BaseTunerLayer) else m for m in modules]
    return [m.weight for m in bare if isinstance(m, nn.Embedding | nn.Linear)]
