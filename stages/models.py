"""A base, its tokenizer and its adapter: loaded, adapted and saved the same way everywhere.

Weights are float32 unless the caller names another format (see `stages.precision`). An adapted
model is saved as an adapter alone, beside the name and hash of its base.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from reward_models.backbone import (
    absolute_name,
    add_token_rows,
    base_token_rows,
    load_adapter,
    load_causal_lm,
    require_base,
    weights_hash,
)
from reward_models.model_files import (
    ADAPTER_CONFIG,
    BASE_FILE,
    LOAD_ERRORS,
    base_name,
    base_source,
    check_adapter_folder,
    check_source,
    first_line,
    peft_base,
    read_json,
    write_base_name,
)
from reward_models.weights.formats import FLOAT32, WeightFormat, is_quantised
from stages.adapters.backbone import (
    adapter_size,
    add_adapter,
    family_of,
    train_layers,
)
from stages.adapters.config import Full, Restricted
from stages.adapters.prefix import fold_prefixes
from stages.data.chat_format import DATE_KEY, ENDS_KEY, prints_date, template_date
from stages.data.template import bos_ids, named_ends, stop_ids, template_markers
from stages.forward_check import check_forward
from stages.residual_dropout import add_residual_dropout


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub model, with an EOS and with a PAD that is not EOS.

    Nor is PAD any other id that ends a response. Where the tokenizer names no such PAD, a special
    token that its chat template does not use is PAD; where there is none, `<|pad|>` is added, and
    `load_policy` adds a row for it. The date that the template prints and the ids at which the
    model beside it stops become part of the tokenizer's configuration, and are saved with it.
    Raises ValueError where there is no tokenizer, or none with EOS, and for a chat template in
    which prompt and response cannot be separated.
    """
    check_source(source)
    if _lacks_tokenizer(Path(source)):
        source = peft_base(Path(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except LOAD_ERRORS as error:
        raise ValueError(f"{source}: no tokenizer there ({first_line(error)})") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{source}: its tokenizer has no EOS token; a response could not end")
    checked: PreTrainedTokenizerBase = tokenizer
    if prints_date(checked):
        checked.init_kwargs[DATE_KEY] = template_date(checked)
    try:
        named = named_ends(checked, _eos_beside(source)) - set(stop_ids(checked))
        if named:
            checked.init_kwargs[ENDS_KEY] = sorted({*named, *checked.init_kwargs.get(ENDS_KEY, ())})
        if checked.pad_token_id is None or checked.pad_token_id in stop_ids(checked):
            checked.add_special_tokens({"pad_token": _spare_token(checked)})
    except ValueError as error:
        raise ValueError(f"{source}: {first_line(error)}") from None
    return checked


def _lacks_tokenizer(folder: Path) -> bool:
    """Return true for an adapter's folder without a tokenizer, which has that of its base."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "tokenizer_config.json").is_file()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 over vocabulary, normalisation, special tokens, BOS, template and date.

    Two tokenizers with one hash turn every text into the same ids; how they pad or truncate, which
    changes as they are used, does not count.
    """
    parts: dict[str, object] = {
        "vocabulary": tokenizer.get_vocab(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
    }
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        whole = json.loads(tokenizer.backend_tokenizer.to_str())
        steps = ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")
        parts |= {step: whole[step] for step in steps}
    if bos := bos_ids(tokenizer):
        parts["before"] = bos
    if prints_date(tokenizer):
        parts["date"] = template_date(tokenizer)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _eos_beside(source: str | Path) -> object:
    """Return the `eos_token_id` of the model beside the tokenizer; None without a model."""
    try:
        return GenerationConfig.from_pretrained(str(source)).eos_token_id
    except TypeError:
        raise ValueError("generation_config.json is no JSON object") from None
    except OSError:
        pass  # most models without generation settings have that of their architecture
    try:
        return PretrainedConfig.get_config_dict(str(source))[0].get("eos_token_id")
    except OSError:
        return None


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return an unused special token: one named for padding, else the unknown one, else any."""
    ends = tokenizer.convert_ids_to_tokens(list(stop_ids(tokenizer)))
    used = {*ends, tokenizer.bos_token, *template_markers(tokenizer)}
    template = str(tokenizer.chat_template or "")
    specials = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    spare = [token for token in specials if token not in used and token not in template]
    named = [token for token in spare if "pad" in token.lower()]
    unknown = [token for token in spare if token == tokenizer.unk_token]
    return (named + unknown + spare[::-1] + ["<|pad|>"])[0]


log = logging.getLogger(__name__)


transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # progress goes through Report
# PEFT uses a name that transformers has since changed; no user can do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
# DeepSpeed, which accelerate imports when a model is saved, would print its guess to stdout.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


def load_policy(
    source: str | Path, *, dropout: float = 0.0, weights: WeightFormat = FLOAT32
) -> PreTrainedModel:
    """Load the causal language model of a folder or hub name, in eval mode.

    `dropout` is residual dropout; every other dropout is off. An adapter's folder loads on its
    base, frozen, as a PeftModel; ValueError where that base is gone or has changed. `weights` is
    the format of the base; an adapter is float32.
    """
    base = load_base(source, weights)
    add_residual_dropout(base, dropout)
    return with_saved_adapter(base, source)


def load_base(source: str | Path, weights: WeightFormat = FLOAT32) -> PreTrainedModel:
    """Load `load_policy`'s model without its adapter; the errors are the same."""
    if (Path(source) / ADAPTER_CONFIG).is_file():
        return _load_base_of(Path(source), weights)
    model = _load_checked(source, weights)
    add_token_rows(model, len(load_tokenizer(source)))
    return model


def with_saved_adapter(base: PreTrainedModel, source: str | Path) -> PreTrainedModel:
    """Return what `load_base` loaded from `source` with the adapter saved there, if any."""
    if not (Path(source) / ADAPTER_CONFIG).is_file():
        return base
    adapter = load_adapter(base, Path(source), trainable=False)
    adapter.train(False)
    return cast(PreTrainedModel, adapter)


def adapt(
    model: PreTrainedModel,
    adaptation: Full | Restricted,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel:
    """Return the model with exactly the parameters of `adaptation` trainable.

    An adapter that the model already has is trained further under the same settings, and merged
    into the base under Full. ValueError for other settings than the adapter's, and for one that
    cannot be merged. `tokenizer` is that of the model, loaded by name where it is not given.
    """
    if isinstance(adaptation, Full):
        if is_quantised(model):
            raise ValueError(
                f"{model.config.name_or_path}: its weights are quantised and adaptation.family is "
                "full, which would train them; expected lora or another adapter"
            )
        whole = merged(model) if isinstance(model, PeftModel) else model
        train_layers(whole, adaptation.top_layers)
        return whole
    if tokenizer is None:
        tokenizer = load_tokenizer(str(model.config.name_or_path))
    return cast(PreTrainedModel, add_adapter(model, adaptation, tokenizer))


def to_device(model: nn.Module, where: torch.device) -> None:
    """Move a model; PreTrainedModel's own method hides its signature and refuses some formats."""
    nn.Module.to(model, where)


def merged(model: PeftModel) -> PreTrainedModel:
    """Return the base with the adapter merged; ValueError where the family is not linear."""
    try:
        whole: PreTrainedModel = model.merge_and_unload()
    except (ValueError, AttributeError, NotImplementedError):
        raise ValueError(
            f"an adapter of family {family_of(model)} cannot be merged: it is no change of weights"
        ) from None
    return whole


def log_router_loss(model: PreTrainedModel) -> None:
    """Log, of a model whose experts have an auxiliary loss, that no stage trains on it."""
    settings = model.config.get_text_config().to_dict()
    coefficient = settings.get("router_aux_loss_coef")
    if coefficient and "output_router_logits" in settings:
        log.info(
            "%s: the auxiliary loss of its experts (router_aux_loss_coef %g) is in no loss that "
            "is trained or reported",
            *(type(model).__name__, coefficient),
        )


def trainable_parameters(model: torch.nn.Module) -> int:
    """Return the number of trainable parameters; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write tokenizer and model; of an adapted one the adapter, with its base's name and hash.

    A reparametrised prefix is folded away here.
    """
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        fold_prefixes(model)
        model.save_pretrained(str(path), save_embedding_layers=False)
        (path / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        write_base_record(path, base_record(model))
    else:
        _name_stops(model, tokenizer)
        model.save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))


def base_record(model: PeftModel) -> dict[str, object]:
    """Return the contents of BASE_FILE, which names and hashes the base of an adapter."""
    adapter, base = adapter_size(model)
    name = str(cast(PreTrainedModel, model.get_base_model()).config.name_or_path)
    return {
        "name": absolute_name(name),
        "weights_sha256": weights_hash(model),
        "token_rows": base_token_rows(model),  # of the token tables, that the hash counts
        "adapter_parameters": adapter,
        "share_of_base": adapter / base,
    }


def write_base_record(
    folder: Path, record: Mapping[str, object], final: Path | None = None
) -> None:
    """Write the record into an adapter's folder, and the base's name into PEFT's config too.

    `final` is the folder's path to come, if it is still to be moved.
    """
    name = base_name(str(record["name"]), final or folder)
    write_base_name(folder, name)
    text = json.dumps({**record, "name": name}, indent=2) + "\n"
    (folder / BASE_FILE).write_text(text, encoding="utf-8")


def device() -> torch.device:
    """Return the device of models outside a trainer: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _name_stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save the ids at which this project stops, for any library that generates with the model."""
    settings = model.generation_config
    if settings is None:
        return
    eos, stops = settings.eos_token_id, stop_ids(tokenizer, model)
    if set(stops) != set(eos if isinstance(eos, list) else [eos]):
        settings.eos_token_id = list(stops) if len(stops) > 1 else stops[0]


def _load_checked(source: str | Path, weights: WeightFormat) -> PreTrainedModel:
    model = load_causal_lm(source, weights)
    model.train(False)
    check_forward(model, source)
    return model


def _load_base_of(path: Path, weights: WeightFormat) -> PreTrainedModel:
    check_adapter_folder(path)
    if not (path / BASE_FILE).is_file():
        return _load_base_by_name(path, weights)
    base = read_json(path / BASE_FILE)
    for key in ("name", "weights_sha256", "token_rows"):
        if key not in base:
            raise ValueError(
                f"{path / BASE_FILE}: it has no '{key}', which an adapter's base needs"
            )
    source = base_source(base["name"], path, base["weights_sha256"])
    try:
        model = _load_checked(source, weights)
    except ValueError as error:
        raise ValueError(f"{path}: its base did not load: {error}") from None
    add_token_rows(model, len(load_tokenizer(path)))
    require_base(model, source, base["weights_sha256"], base["token_rows"], path)
    return model


def _load_base_by_name(path: Path, weights: WeightFormat) -> PreTrainedModel:
    """Load the base that PEFT's config of an adapter names; its hash is logged, once."""
    whole = read_json(path / ADAPTER_CONFIG).get("modules_to_save")
    if whole:
        raise ValueError(
            f"{path}: beside its adapter it has whole modules ({', '.join(whole)}); expected an "
            "adapter alone, or the model that PEFT's merge_and_unload gives"
        )
    source = peft_base(path)
    try:
        model = _load_checked(source, weights)
    except ValueError as error:
        raise ValueError(f"{path}: its base did not load: {error}") from None
    add_token_rows(model, len(load_tokenizer(path)))
    _log_base(path, source, weights_hash(model))
    return model


@cache
def _log_base(path: Path, source: str, sha256: str) -> None:
    log.info(
        "%s has no %s: its base is %s by name alone, weights %s…",
        *(path, BASE_FILE, source, sha256[:8]),
    )
