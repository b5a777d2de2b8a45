"""A model's tokenizer: loaded with all that decides how texts become ids, and told apart by it."""

import hashlib
import json
from pathlib import Path

from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from reward_models.hub import check_source
from reward_models.model_folder import WRONG_FILES
from reward_models.one_line import first_line
from stages.data.chat_format import DATE_KEY, ENDS_KEY, prints_date, template_date
from stages.data.template import bos_ids, named_ends, stop_ids, template_markers


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
    except WRONG_FILES as error:
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
