"""A base, its tokenizer and what may move: loaded, adapted and saved the same way everywhere.

Weights are float32 wherever they are trained: an update of 1e-6 vanishes in 16 bits, and on CPUs
without bf16 units bf16 is three to seven times slower. Weights stored in 16 bits are widened at
load. A restricted model is saved as an adapter alone, beside the name and hash of its base.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import (
    AutoModelForCausalLM,
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
    load_pretrained,
    weights_hash,
)
from reward_models.base_names import base_name, base_source, write_base_name
from reward_models.model_files import (
    LOAD_ERRORS,
    check_adapter_folder,
    check_source,
    first_line,
    read_json,
)
from stages.adapters.backbone import (
    adapter_size,
    add_adapter,
    family_of,
    layers_of,
    train_layers,
)
from stages.adapters.config import Full, Restricted
from stages.adapters.prefix import fold_prefixes
from stages.data.chat_format import DATE_KEY, ENDS_KEY, prints_date, template_date
from stages.data.template import bos_ids, named_ends, stop_ids, template_markers
from stages.forward_check import check_forward


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub model, with an EOS and with a PAD that is not EOS.

    Nor is PAD any other id that ends a response. Where the tokenizer names no such PAD, a special
    token that its chat template does not use takes the part; where there is none, `<|pad|>` is
    added, for which `load_policy` makes room. The date that the template prints and the ids at
    which the model beside it stops become part of the tokenizer's configuration, and are saved with
    it. Raises ValueError where there is no tokenizer, or none with EOS, and for a chat template in
    which no prompt and response can be told apart.
    """
    check_source(source)
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


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over vocabulary, merges, normalisation, special tokens, BOS, chat template, its date.

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
    if bos := bos_ids(tokenizer):
        read["before"] = bos
    if prints_date(tokenizer):
        read["date"] = template_date(tokenizer)
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _eos_beside(source: str | Path) -> object:
    """The `eos_token_id` of the model whose tokenizer this is; None where no model lies there."""
    try:
        return GenerationConfig.from_pretrained(str(source)).eos_token_id
    except TypeError:
        raise ValueError("generation_config.json is no JSON object") from None
    except OSError:
        pass  # most models that name no settings of their own have the one of their architecture
    try:
        return PretrainedConfig.get_config_dict(str(source))[0].get("eos_token_id")
    except OSError:
        return None


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token that stands for nothing else: named for padding, else unknown, else last."""
    ends = tokenizer.convert_ids_to_tokens(list(stop_ids(tokenizer)))
    used = {*ends, tokenizer.bos_token, *template_markers(tokenizer)}
    template = str(tokenizer.chat_template or "")
    specials = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    spare = [token for token in specials if token not in used and token not in template]
    named = [token for token in spare if "pad" in token.lower()]
    unknown = [token for token in spare if token == tokenizer.unk_token]
    return (named + unknown + spare[::-1] + ["<|pad|>"])[0]


_GPT2 = ("attn", "mlp")
_LLAMA = ("self_attn", "mlp")
_NEOX = ("attention", "mlp")
# What the two blocks of a layer are called, by `model_type`; both add straight to the residual.
BLOCKS = {
    "gpt2": _GPT2,
    "falcon": ("self_attention", "mlp"),
    "gpt_neox": _NEOX,
    "granite": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "olmo": _LLAMA,
    "opt": ("self_attn", "fc2"),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
}


def add_residual_dropout(model: PreTrainedModel, rate: float) -> None:
    """Drop a share `rate` of what every block adds, while the model is in training mode.

    Raises ValueError for an architecture whose blocks are not known by name.
    """
    if rate == 0.0:
        return
    kind = model.config.model_type
    if kind not in BLOCKS:
        raise ValueError(
            f"dropout is {rate}, but no residual dropout is known for the architecture '{kind}'; "
            f"set it to 0, or use one of {', '.join(BLOCKS)}"
        )
    for layer in layers_of(model):
        for name in BLOCKS[kind]:
            layer.get_submodule(name).register_forward_hook(partial(_drop, rate))


def _drop(
    rate: float, block: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]
) -> Tensor | tuple[Tensor, ...]:
    if isinstance(output, tuple):  # attention also returns its weights
        return (dropout(output[0], rate, block.training), *output[1:])
    return dropout(output, rate, block.training)


log = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_config.json"  # PEFT's name: a folder that holds it is an adapter
BASE_FILE = "base.json"  # beside it: {"name", "weights_sha256", "token_rows"} of the base

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # progress goes through Report
# PEFT reads a name that transformers has since changed; nothing a user could do about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
# DeepSpeed, which accelerate imports when a model is saved, would print its guess to stdout.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


def load_policy(source: str | Path, *, dropout: float = 0.0) -> PreTrainedModel:
    """The causal language model of a folder or hub name, float32, in eval mode.

    `dropout` is residual dropout (see `stages.models`); every other dropout is off. An adapter
    folder loads on its base, frozen, as a PeftModel (which answers for its base in everything);
    ValueError where that base is gone or is no longer the same.
    """
    base = load_base(source)
    add_residual_dropout(base, dropout)
    return with_saved_adapter(base, source)


def load_base(source: str | Path) -> PreTrainedModel:
    """`load_policy`'s model without the set that may be on it; its errors are the same."""
    if (Path(source) / ADAPTER_FILE).is_file():
        return _load_base_of(Path(source))
    model = _load_causal_lm(source)
    add_token_rows(model, len(load_tokenizer(source)))
    return model


def with_saved_adapter(base: PreTrainedModel, source: str | Path) -> PreTrainedModel:
    """What `load_base` loaded from `source`, with the set that is saved there, if one is."""
    if not (Path(source) / ADAPTER_FILE).is_file():
        return base
    adapter = load_adapter(base, Path(source), trainable=False)
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
    return cast(PreTrainedModel, add_adapter(model, adaptation, words))


def merged(model: PeftModel) -> PreTrainedModel:
    """The base with the set as part of its weights; ValueError where the family is not linear."""
    try:
        whole: PreTrainedModel = model.merge_and_unload()
    except (ValueError, AttributeError, NotImplementedError):
        raise ValueError(
            f"a set of family {family_of(model)} is no change of the weights: it cannot be merged"
        ) from None
    return whole


def log_router_loss(model: PreTrainedModel) -> None:
    """Log, of a model whose experts have an auxiliary loss, that no stage trains on it."""
    settings = model.config.get_text_config().to_dict()
    coefficient = settings.get("router_aux_loss_coef")
    if coefficient and "output_router_logits" in settings:
        log.info(
            "%s: the auxiliary loss of its experts (router_aux_loss_coef %g) is no part of what is "
            "trained, nor of any loss that is reported",
            *(type(model).__name__, coefficient),
        )


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
        write_base_record(path, base_record(model))
    else:
        _name_stops(model, tokenizer)
        model.save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))


def base_record(model: PeftModel) -> dict[str, object]:
    """What lies in BASE_FILE beside an adapter's weights: which base they belong to."""
    held, whole = adapter_size(model)
    name = str(cast(PreTrainedModel, model.get_base_model()).config.name_or_path)
    base = {
        "name": absolute_name(name),
        "weights_sha256": weights_hash(model),
        "token_rows": base_token_rows(model),  # of the token tables, that the hash counts
    }
    return {**base, "set_parameters": held, "share_of_base": held / whole}


def write_base_record(folder: Path, note: Mapping[str, object], lies: Path | None = None) -> None:
    """Put the note into an adapter's folder, and the base's name into PEFT's config too.

    `lies` is where the folder will lie, if it is still to be moved.
    """
    name = base_name(str(note["name"]), lies or folder)
    write_base_name(folder, name)
    told = json.dumps({**note, "name": name}, indent=2) + "\n"
    (folder / BASE_FILE).write_text(told, encoding="utf-8")


def device() -> torch.device:
    """Where models run outside a trainer: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _name_stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let whoever generates with the saved model stop where this project does."""
    settings = model.generation_config
    if settings is None:
        return
    named, stops = settings.eos_token_id, stop_ids(tokenizer, model)
    if set(stops) != set(named if isinstance(named, list) else [named]):
        settings.eos_token_id = list(stops) if len(stops) > 1 else stops[0]


def _load_causal_lm(source: str | Path) -> PreTrainedModel:
    model = load_pretrained(AutoModelForCausalLM, str(source), "causal language model")
    model.train(False)
    check_forward(model, source)
    return model


def _load_base_of(path: Path) -> PreTrainedModel:
    if not (path / BASE_FILE).is_file():
        raise ValueError(f"{path}: an adapter without {BASE_FILE}, which names and hashes its base")
    check_adapter_folder(path)
    base = read_json(path / BASE_FILE)
    for key in ("name", "weights_sha256", "token_rows"):
        if key not in base:
            raise ValueError(
                f"{path / BASE_FILE}: it has no '{key}', which an adapter's base needs"
            )
    source = base_source(base["name"], path, base["weights_sha256"])
    try:
        model = _load_causal_lm(source)
    except ValueError as error:
        raise ValueError(f"{path}: its base did not load: {error}") from None
    add_token_rows(model, len(load_tokenizer(path)))
    found = weights_hash(model, base["token_rows"])
    if found != base["weights_sha256"]:
        raise ValueError(
            f"{path} was trained on base {base['weights_sha256'][:8]}…, "
            f"{source} is {found[:8]}…: an adapter only fits the weights it was trained on"
        )
    return model
