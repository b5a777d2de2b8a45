"""The transformer under a reward model: no dropout, float32, found inside what carries it."""

import hashlib
import inspect
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from reward_models.bases import ADAPTER_CONFIG, base_source
from reward_models.card import RewardCard
from reward_models.hub import check_source
from reward_models.one_line import first_line

Carrier = PreTrainedModel | PeftModel


def load_causal(source: str | Path) -> PreTrainedModel:
    """The causal language model of a folder or hub name; ValueError where there is none."""
    return _load(AutoModelForCausalLM, str(source))


def load_saved(folder: Path, card: RewardCard, base: PreTrainedModel | None) -> Carrier:
    """What a reward model saved: a whole trunk, or what belongs on the base that the card names.

    `base` is used where it is that one. Raises ValueError where the card's base is gone or is no
    longer the same.
    """
    adapted = (folder / ADAPTER_CONFIG).is_file()
    if not adapted and not card.head_only:
        return _load(AutoModel, str(folder))
    source = base_source(card.base, folder, card.base_hash)
    if base is None or place_of(str(base.config.name_or_path)) != place_of(source):
        base = load_causal(source)
    found = weights_hash(base, token_tables=False)
    if found != card.base_hash:
        raise ValueError(
            f"{folder} was trained on base {card.base_hash[:8]}…, {source} is {found[:8]}…: "
            "an adapter only fits the weights it was trained on"
        )
    if card.head_only:
        return transformer(base).requires_grad_(False)
    return PeftModel.from_pretrained(base, str(folder), is_trainable=True)


def place_of(name: str) -> str:
    """How a base is named in what is saved: a folder's whole path, a hub model's name."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def transformer(carrier: Carrier) -> PreTrainedModel:
    """The transformer itself, without the PEFT model and the unembedding around it."""
    inside = carrier.get_base_model() if isinstance(carrier, PeftModel) else carrier
    trunk = inside.base_model
    assert isinstance(trunk, PreTrainedModel)
    return trunk


def accepts_positions(trunk: PreTrainedModel) -> bool:
    """Whether it takes explicit positions; ALiBi and recurrences read them off the mask."""
    return "position_ids" in inspect.signature(trunk.forward).parameters


def hidden_size(trunk: PreTrainedModel) -> int:
    """D of its last hidden states, which is that of its embeddings."""
    table = trunk.get_input_embeddings()
    table = table.get_base_layer() if isinstance(table, BaseTunerLayer) else table
    assert isinstance(table, nn.Embedding)
    return table.embedding_dim


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """The same config with every dropout rate 0: scores must not depend on the module's mode."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def adapter_parameters(model: nn.Module) -> set[int]:
    """The ids of all parameters that adapters hold beside the modules they wrap."""
    return {
        id(parameter)
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for name, child in layer.named_children()
        if name != "base_layer"
        for parameter in child.parameters()
    }


def weights_hash(model: Carrier, *, token_tables: bool = True) -> str:
    """sha256 over names, shapes and float32 values of the base's weights, adapters left out.

    A reward model leaves its token tables out too: a PAD added at load widens them, and is never
    read there.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    left_out = adapter_parameters(base) | (set() if token_tables else _token_tables(base))
    digest = hashlib.sha256()
    for name, weight in sorted(base.named_parameters()):
        if id(weight) in left_out:
            continue
        digest.update(f"{name.replace('.base_layer.', '.')} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().flatten().numpy().data)
    return digest.hexdigest()


def _token_tables(base: PreTrainedModel) -> set[int]:
    """The ids of the embedding and the unembedding."""
    unembedding = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables = (base.get_input_embeddings(), unembedding)
    bare = [t.get_base_layer() if isinstance(t, BaseTunerLayer) else t for t in tables]
    return {id(table.weight) for table in bare if isinstance(table, nn.Embedding | nn.Linear)}


def _load(kind: type[AutoModel] | type[AutoModelForCausalLM], source: str) -> PreTrainedModel:
    check_source(source)
    try:
        config = without_dropout(AutoConfig.from_pretrained(source))
        loaded = kind.from_pretrained(source, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no model there ({first_line(error)})") from None
    model: PreTrainedModel = loaded
    return model
