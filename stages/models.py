"""A base, its tokenizer and what may move: loaded, adapted and saved the same way everywhere.

Weights are float32 wherever they are trained: an update of 1e-6 vanishes in 16 bits, and on CPUs
without bf16 units bf16 is three to seven times slower. Weights stored in 16 bits are widened at
load. A restricted model is saved as an adapter alone, beside the name and hash of its base.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from reward_models.bases import base_name, base_source, name_base
from reward_models.hub import check_source
from reward_models.one_line import first_line
from reward_models.trunk import place_of, weights_hash
from stages.adaptation.prefix import fold_prefixes
from stages.adaptation.sets import family_of, restrict, set_parameters
from stages.adaptation.top_layers import train_layers
from stages.dropout import add_residual_dropout, switch_off_dropout
from stages.families import Full, Restricted

ADAPTER_FILE = "adapter_config.json"  # PEFT's name: a folder that holds it is an adapter
BASE_FILE = "base.json"  # beside it: {"name", "weights_sha256"} of the base

logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # progress goes through Report
# PEFT reads a name that transformers has since changed; nothing a user could do about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
# DeepSpeed, which accelerate imports when a model is saved, would print its guess to stdout.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub model, with an EOS and with a PAD that is not EOS.

    Where the tokenizer names no such PAD, a special token that its chat template does not use takes
    the part; where there is none, `<|pad|>` is added, for which `load_policy` makes room.
    Raises ValueError where there is no tokenizer, or none with EOS.
    """
    check_source(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no tokenizer there ({first_line(error)})") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{source}: its tokenizer has no EOS token; a response could not end")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": _spare_token(tokenizer)})
    checked: PreTrainedTokenizerBase = tokenizer
    return checked


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over vocabulary, merges, normalisation, special tokens and chat template.

    Two tokenizers with one hash turn every text into the same ids; how they pad or truncate, which
    changes as they are used, does not count.
    """
    read: dict[str, object] = {
        "vocabulary": tokenizer.get_vocab(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
    }
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        whole = json.loads(tokenizer.backend_tokenizer.to_str())
        steps = ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")
        read |= {step: whole[step] for step in steps}
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def load_policy(source: str | Path, *, dropout: float = 0.0) -> PreTrainedModel:
    """The causal language model of a folder or hub name, float32, in eval mode.

    `dropout` is residual dropout (see `stages.dropout`); every other dropout is off. An adapter
    folder loads on its base, frozen, as a PeftModel (which answers for its base in everything);
    ValueError where that base is gone or is no longer the same.
    """
    base = load_base(source)
    add_residual_dropout(base, dropout)
    return with_saved_set(base, source)


def load_base(source: str | Path) -> PreTrainedModel:
    """`load_policy`'s model without the set that may be on it; its errors are the same."""
    if (Path(source) / ADAPTER_FILE).is_file():
        return _load_base_of(Path(source))
    model = _load_causal_lm(source)
    _fit_vocabulary(model, load_tokenizer(source))
    model.train(False)
    return model


def with_saved_set(base: PreTrainedModel, source: str | Path) -> PreTrainedModel:
    """What `load_base` loaded from `source`, with the set that is saved there, if one is."""
    if not (Path(source) / ADAPTER_FILE).is_file():
        return base
    adapter = PeftModel.from_pretrained(base, str(source))
    adapter.train(False)
    return cast(PreTrainedModel, adapter)


def adapt(
    model: PreTrainedModel,
    adaptation: Full | Restricted,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel:
    """The model with exactly the parameters of `adaptation` trainable.

    A model that already carries a set goes on training it under the same settings, and is merged
    into its base under Full. ValueError for other settings than the set's, and for a set that
    cannot be merged. `tokenizer` is that of the model, loaded by name where it is not given.
    """
    if isinstance(adaptation, Full):
        whole = merged(model) if isinstance(model, PeftModel) else model
        train_layers(whole, adaptation.top_layers)
        return whole
    words = load_tokenizer(str(model.config.name_or_path)) if tokenizer is None else tokenizer
    return cast(PreTrainedModel, restrict(model, adaptation, words))


def merged(model: PeftModel) -> PreTrainedModel:
    """The base with the set as part of its weights; ValueError where the family is not linear."""
    try:
        whole: PreTrainedModel = model.merge_and_unload()
    except (ValueError, AttributeError, NotImplementedError):
        raise ValueError(
            f"a set of family {family_of(model)} is no change of the weights: it cannot be merged"
        ) from None
    return whole


def trainable_parameters(model: torch.nn.Module) -> int:
    """How many numbers training may change; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write the model (of a restricted one the set alone, its base named and hashed), tokenizer.

    A reparametrised prefix is folded away here.
    """
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        fold_prefixes(model)
        model.save_pretrained(str(path), save_embedding_layers=False)
        (path / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        write_base_note(path, base_note(model))
    else:
        model.save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))


def base_note(model: PeftModel) -> dict[str, object]:
    """What lies in BASE_FILE beside an adapter's weights: which base they belong to."""
    held, whole = set_parameters(model)
    name = str(cast(PreTrainedModel, model.get_base_model()).config.name_or_path)
    base = {"name": place_of(name), "weights_sha256": weights_hash(model)}
    return {**base, "set_parameters": held, "share_of_base": held / whole}


def write_base_note(folder: Path, note: Mapping[str, object], lies: Path | None = None) -> None:
    """Put the note into an adapter's folder, and the base's name into PEFT's config too.

    `lies` is where the folder will lie, if it is still to be moved.
    """
    name = base_name(str(note["name"]), lies or folder)
    name_base(folder, name)
    told = json.dumps({**note, "name": name}, indent=2) + "\n"
    (folder / BASE_FILE).write_text(told, encoding="utf-8")


def device() -> torch.device:
    """Where models run outside a trainer: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token that stands for nothing else: named for padding, else unknown, else last."""
    used = {tokenizer.eos_token, tokenizer.bos_token}
    template = str(tokenizer.chat_template or "")
    specials = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    spare = [token for token in specials if token not in used and token not in template]
    named = [token for token in spare if "pad" in token.lower()]
    unknown = [token for token in spare if token == tokenizer.unk_token]
    return (named + unknown + spare[::-1] + ["<|pad|>"])[0]


def _load_causal_lm(source: str | Path) -> PreTrainedModel:
    check_source(source)
    try:
        config = AutoConfig.from_pretrained(str(source))
        switch_off_dropout(config)
        loaded: object = AutoModelForCausalLM.from_pretrained(
            str(source), config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no causal language model ({first_line(error)})") from None
    model, found = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(f"{source}: {len(missing)} weights are missing, the first is {missing[0]}")
    return model


def _fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give every id of the tokenizer a row; a new row is the mean of the old ones."""
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) <= rows:
        return
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):  # type: ignore[no-untyped-call]
            weight_VD = table.get_parameter("weight")
            weight_VD[rows:] = weight_VD[:rows].mean(dim=0)


def _load_base_of(path: Path) -> PreTrainedModel:
    if not (path / BASE_FILE).is_file():
        raise ValueError(f"{path}: an adapter without {BASE_FILE}, which names and hashes its base")
    base = json.loads((path / BASE_FILE).read_text(encoding="utf-8"))
    source = base_source(base["name"], path, base["weights_sha256"])
    try:
        model = _load_causal_lm(source)
    except ValueError as error:
        raise ValueError(f"{path}: its base did not load: {error}") from None
    _fit_vocabulary(model, load_tokenizer(path))
    found = weights_hash(model)
    if found != base["weights_sha256"]:
        raise ValueError(
            f"{path} was trained on base {base['weights_sha256'][:8]}…, "
            f"{source} is {found[:8]}…: an adapter only fits the weights it was trained on"
        )
    model.train(False)
    return model
