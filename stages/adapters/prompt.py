"""Prompt tuning (Lester et al. 2021): trained embeddings stand before the prompt's own.

    logits = f([e_1 .. e_k ; x_1 .. x_n])

The k embeddings are run through the frozen model once; the keys and values that its layers make of
them then stand before those of every row, and the rows' positions begin at k. That is the same
function, and padding, the cache and logits need no special case: no row grows.

Embeddings begin as those of random words, of a text (the names of the classes), or as random
numbers: the three of the paper's section 3.2.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.adapters.config import Prompt
from stages.adapters.prefix_attention import (
    let_attend_to_sets,
    listening,
    put_before,
    put_nothing_before,
)
from stages.adapters.registration import (
    SetConfig,
    SetLayer,
    SetModel,
    parts_of,
    peft_type,
    register,
    table_place,
)
from stages.data.template import text_ids


@dataclass
class PromptConfig(SetConfig):
    """`length` embeddings; `attention` is how the architecture calls the module that sees them."""

    length: int = field(default=20)
    attention: str = field(default="self_attn")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("SOFT_PROMPT")


class PromptLayer(SetLayer):
    """The input embedding, beside which the trained embeddings lie."""

    adapter_layer_names = ("soft_prompt",)

    def begin(self) -> None:
        """A soft prompt a set."""
        self.soft_prompt = nn.ParameterDict()

    def add(self, name: str, config: PromptConfig) -> None:
        """As spread as the embeddings are; other beginnings are put in by `new_prompt`."""
        weight_VD = self.get_base_layer().get_parameter("weight")
        drawn = torch.randn(config.length, weight_VD.shape[1]) * weight_VD.detach().std().cpu()
        self.soft_prompt[name] = nn.Parameter(drawn)

    def forward(self, ids: Tensor) -> Tensor:
        """The base's embeddings."""
        found: Tensor = self.base_layer(ids)
        return found

    def active(self) -> Tensor | None:
        """prompt_PD of the set that acts now."""
        name = self.active_name(self.soft_prompt)
        return None if name is None else self.soft_prompt[name]


class PromptReader:
    """Before every pass of a transformer: reads the soft prompt, and puts it before all rows."""

    def __init__(self, attention: str) -> None:
        self.attention = attention
        self.busy = False
        self._read_last: tuple[int, int, bool] | None = None  # what stands before all rows

    def __deepcopy__(self, memo: dict[int, Any]) -> "PromptReader":
        """A copied model has modules of its own, before which nothing stands yet."""
        return PromptReader(self.attention)

    def __call__(
        self, trunk: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook; positions are moved up by the prompt's length."""
        if self.busy:
            return None
        assert isinstance(trunk, PreTrainedModel)
        layer = trunk.get_input_embeddings()
        assert isinstance(layer, PromptLayer)
        prompt_PD = layer.active()
        if prompt_PD is None:
            self._forget(trunk)
            return None
        now = _state(prompt_PD)
        if torch.is_grad_enabled() or now is None or self._read_last != now:
            self._forget(trunk)
            self._read(trunk, prompt_PD)
        ids = given[0] if given else named.get("input_ids")
        ids = named["inputs_embeds"] if ids is None else ids
        position_BL = named.get("position_ids")
        if position_BL is None:
            position_BL = _positions(ids, named)
        return given, {**named, "position_ids": position_BL + len(prompt_PD)}

    def _forget(self, trunk: nn.Module) -> None:
        self._read_last = None
        for name, module in trunk.named_modules():
            if name.endswith(f".{self.attention}"):
                put_nothing_before(module)

    def _read(self, trunk: nn.Module, prompt_PD: Tensor) -> None:
        """The prompt alone, never recomputed: a checkpoint would find it before itself."""
        training, self.busy = trunk.training, True
        trunk.train(False)
        try:
            place_1P = torch.arange(len(prompt_PD), device=prompt_PD.device)[None]
            with listening() as heard:
                trunk(inputs_embeds=prompt_PD[None], position_ids=place_1P, use_cache=False)
        finally:
            trunk.train(training)
            self.busy = False
        if not torch.is_grad_enabled():
            self._read_last = _state(prompt_PD)
        for module, (key_1HPD, value_1HPD) in heard.items():
            put_before(module, key_1HPD[0], value_1HPD[0])


class PromptModel(SetModel):
    """PEFT's view of the family."""

    prefix = "soft_prompt"
    layer = PromptLayer

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        assert isinstance(peft_config, PromptConfig)
        assert isinstance(model, PreTrainedModel)
        let_attend_to_sets(model)
        reader = PromptReader(peft_config.attention)
        model.base_model.register_forward_pre_hook(reader, with_kwargs=True)


register("soft_prompt", PromptConfig, PromptModel)


def new_prompt(
    model: PreTrainedModel, adaptation: Prompt, tokenizer: PreTrainedTokenizerBase
) -> PeftModel:
    """The frozen model with a fresh soft prompt.

    Raises ValueError where `text` has no token.
    """
    weight_VD = model.get_input_embeddings().get_parameter("weight").detach()
    config = PromptConfig(
        target_modules={table_place(model)},
        length=adaptation.length,
        attention=parts_of(model).attention,
    )
    adapted = get_peft_model(model, config)
    ids = _beginning(adaptation, tokenizer)
    if ids is not None:
        layer = model.get_input_embeddings()
        assert isinstance(layer, PromptLayer)
        with torch.no_grad():
            layer.soft_prompt["default"].copy_(weight_VD[ids])
    return adapted


def _beginning(adaptation: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Token ids whose embeddings the prompt begins with."""
    match adaptation.begin:
        case "random":
            return None
        case "vocabulary":
            special = set(tokenizer.all_special_ids)
            words = [i for i in range(len(tokenizer)) if i not in special]
            places = torch.randint(len(words), (adaptation.length,)).tolist()
            return [words[place] for place in places]
        case "text":
            ids = text_ids(tokenizer, adaptation.text)
            if not ids:
                raise ValueError("adaptation.text has no token to begin the prompt with")
            return [ids[place % len(ids)] for place in range(adaptation.length)]


def _state(prompt_PD: Tensor) -> tuple[int, int, bool] | None:
    """Tells whether an embedding was changed since; under inference mode tensors are others.

    None where that cannot be told: what DeepSpeed divides is put together anew for every pass, at
    an address by chance the old one, and ranks that then did not read alike would wait for ever.
    """
    if "ds_id" in vars(prompt_PD):
        return None
    return prompt_PD.data_ptr(), prompt_PD._version, torch.is_inference_mode_enabled()


def _positions(ids: Tensor, named: dict[str, Any]) -> Tensor:
    """Positions where nobody gives any: one after the other, after the cache."""
    cache = named.get("past_key_values")
    before = 0 if cache is None else int(cache.get_seq_length())
    return torch.arange(before, before + ids.shape[1], device=ids.device)[None]
