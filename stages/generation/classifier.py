"""A reward model of another library: a sequence classifier with one label, and its own tokenizer.

So are those of TRL's RewardTrainer, whole or as an adapter of PEFT, and most on the hub. It scores
text, whatever tokenizer the policy has:

    with a chat template       the conversation, rendered by it
    an encoder without one     a pair: the conversation before the response, and the response
    others                     the conversation, a line break, the response, EOS

Its scores are those of transformers alone. A response is always scored as a finished one: such a
model has seen no other. No text turns into a control token, whatever its content.

Dimension key:  B texts,  L tokens.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import snapshot_download
from jinja2.exceptions import TemplateError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from reward_models.backbone import HEADS, Backbone, load_adapter, load_classifier, transformer
from reward_models.context_limit import ContextLimit, hard_position_limit
from reward_models.conversations import Turn
from reward_models.model_files import (
    ADAPTER_WEIGHTS,
    LOAD_ERRORS,
    check_source,
    first_line,
    peft_base,
)
from reward_models.records import Prompt
from reward_models.weights.formats import FLOAT32, WeightFormat
from stages.data.chat_format import added_tokens, frozen_in_time, template_date
from stages.data.control_tokens import ControlTokens, Marks
from stages.data.padding import pad_right
from stages.data.template import user_text, without_system, written_out

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Text:
    """A conversation as the classifier's token ids, and the segment of each, if it has segments."""

    ids: list[int]
    segments: list[int] | None


class SequenceClassifier(nn.Module):
    """A classifier whose only logit is the score of a text."""

    def __init__(self, model: Backbone, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        super().__init__()
        self.model, self.tokenizer, self.source = model, tokenizer, source
        config = transformer(model).config
        self.pad_id = config.get_text_config().pad_token_id
        self.limit = ContextLimit(f"the reward model {source}", hard_position_limit(config))
        self.control = ControlTokens(tokenizer, added_tokens(tokenizer))
        self.is_pair = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
        self._has_cut = False

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return transformer(self.model).device

    @property
    def width(self) -> int:
        """The size of its hidden states."""
        return int(transformer(self.model).config.get_text_config().hidden_size)

    def forward(self, texts: Sequence[Text]) -> Tensor:
        """Return score_B in float32; the rows are padded on the right."""
        if self.pad_id is None and len(texts) > 1:
            # transformers looks for the last token by the id of PAD, and has none here.
            return torch.cat([self([text]) for text in texts])
        ids_BL, mask_BL = pad_right([text.ids for text in texts], self.pad_id or 0)
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL.long()}
        if texts[0].segments is not None:
            segments = [text.segments or [] for text in texts]
            inputs["token_type_ids"] = pad_right(segments, 0)[0]
        inputs = {name: x.to(self.device) for name, x in inputs.items()}
        score_B: Tensor = self.model(**inputs).logits[:, 0].float()
        return score_B

    def encode(self, prompt: Prompt, response: str) -> Text:
        """Return a prompt with its response as token ids.

        Of a text that is longer than the model has positions for, the first token and the last ones
        remain; a warning says so once. Raises ValueError where the template refuses it.
        """
        text, limit = self._whole(prompt, response), self.limit.tokens
        if limit is None or len(text.ids) <= limit:
            return text
        if not self._has_cut:
            log.warning(
                "%s: a text of %d tokens is cut to its %d positions: the first token, and the last",
                *(self.source, len(text.ids), limit),
            )
        self._has_cut = True
        left_out = slice(1, len(text.ids) - limit + 1)
        for tokens in (text.ids, text.segments or []):
            del tokens[left_out]
        return text

    def require_fit(self, prompts: Sequence[Prompt]) -> None:
        """Raise ValueError where a prompt takes all positions and leaves none for its response."""
        if self.limit.tokens is not None:
            longest = max(len(self._whole(prompt, "").ids) for prompt in prompts)
            self.limit.require(1 + longest, "the longest prompt and a token of its response")

    def _whole(self, prompt: Prompt, response: str) -> Text:
        turns = [*prompt.history, Turn("user", user_text(prompt.prompt, prompt.context))]
        tokenizer = self.tokenizer
        if tokenizer.chat_template is not None:
            return Text(self._templated([*turns, Turn("assistant", response)]), None)
        before = written_out(turns)
        if self.is_pair:
            both = tokenizer(before, response, split_special_tokens=True)
            return Text(list(both["input_ids"]), both.get("token_type_ids"))
        ids = list(tokenizer(f"{before}\n{response}", split_special_tokens=True)["input_ids"])
        end = tokenizer.eos_token_id
        return Text(ids if end is None or ids[-1:] == [end] else [*ids, cast(int, end)], None)

    def _templated(self, turns: Sequence[Turn]) -> list[int]:
        texts = [turn.content for turn in turns]
        if not any(self.control.found_in(text) for text in texts):
            rendered = self._rendered(turns)
            return list(self.tokenizer.encode(rendered, add_special_tokens=False))
        marks = Marks.outside(texts)
        hidden = [Turn(turn.role, self.control.hidden(turn.content, marks)) for turn in turns]
        return self.control.encode(self._rendered(hidden), marks)

    def _rendered(self, turns: Sequence[Turn]) -> str:
        """Return the text of the template; one that refuses system turns gets the user's alone."""
        template = frozen_in_time(str(self.tokenizer.chat_template), template_date(self.tokenizer))
        without = without_system(turns)
        for chosen in (turns, without):
            try:
                text = self.tokenizer.apply_chat_template(
                    [turn.to_json() for turn in chosen], chat_template=template, tokenize=False
                )
            except (TemplateError, TypeError) as error:
                refusal = first_line(error)
            else:
                return str(text)
        roles = ", ".join(turn.role for turn in turns)
        raise ValueError(f"{self.source}: its chat template refuses {roles}: {refusal}")


def load_sequence_classifier(
    source: str | Path, weights: WeightFormat = FLOAT32
) -> SequenceClassifier:
    """Load the classifier of a folder or hub name, or an adapter of PEFT with its base.

    Raises ValueError where it has another number of labels than one, no tokenizer, or no head.
    """
    check_source(source)
    name, folder = str(source), Path(source)
    if find_adapter_config_file(name) is None:
        _require_one_label(name)
        tokenizer = _tokenizer(name)
        model: Backbone = load_classifier(name, weights=weights)
    else:
        folder = folder if folder.is_dir() else Path(snapshot_download(name))
        base = peft_base(folder)
        tokenizer = _tokenizer(str(folder), base)
        _require_head(folder, base)
        bare = load_classifier(base, without_head=True, weights=weights)
        model = load_adapter(bare, folder, trainable=False)
    model.requires_grad_(False)
    model.train(False)
    return SequenceClassifier(model, tokenizer, name)


def check_classifier(source: str | Path) -> None:
    """Raise ValueError for a source that `load_sequence_classifier` would refuse, unloaded."""
    check_source(source)
    if find_adapter_config_file(str(source)) is None:
        _require_one_label(str(source))
        _tokenizer(str(source))


def _require_one_label(source: str) -> None:
    try:
        config = AutoConfig.from_pretrained(source)
    except LOAD_ERRORS as error:
        raise ValueError(f"{source}: no reward model there ({first_line(error)})") from None
    kinds = config.architectures or ["no architecture"]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(
            f"{source}: {kinds[0]} is no reward model; expected a folder of this project's, or a "
            "sequence classifier with one label"
        )
    if config.num_labels != 1:
        raise ValueError(f"{source}: it has {config.num_labels} labels; a reward model has one")


def _tokenizer(*sources: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the first source that has one."""
    reason = "no vocabulary"
    for source in sources:
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
        except LOAD_ERRORS as error:
            reason = first_line(error)
            continue
        # Without files transformers makes an empty one of the model's kind.
        if tokenizer.vocab_size > len(tokenizer.all_special_tokens):
            return tokenizer
    raise ValueError(f"{sources[0]}: no tokenizer there, which renders its texts ({reason})")


def _require_head(folder: Path, base: str) -> None:
    """Raise ValueError where an adapter is no classifier's: its head would be drawn at random."""
    weights = folder / ADAPTER_WEIGHTS[0]
    if weights.is_file():
        with safe_open(weights, "pt") as file:
            names = list(file.keys())
        heads = [name for name in names if any(f".{head}" in name for head in HEADS)]
        if not heads and "ForSequenceClassification" not in _architecture(base):
            raise ValueError(
                f"{folder}: its head is neither in the adapter nor in its base {base}; expected "
                'one that was trained with modules_to_save ["score"]'
            )


def _architecture(source: str) -> str:
    return " ".join(AutoConfig.from_pretrained(source).architectures or ())
