"""Prompt tuning (Lester et al. 2021): trained embeddings stand before the prompt's own.

    logits = f([e_1 .. e_k ; x_1 .. x_n])

The k embeddings go through the frozen model once; the keys and values that its layers compute from
them then stand before those of every row, and the rows' positions begin at k. That is the same
function, and padding, the cache and logits need no special case: no row grows.

Embeddings are initialised as those of random words, of a text (the names of the classes), or as
random numbers: the three ways of the paper's section 3.2.

Dimension key:  B rows,  L tokens,  P virtual tokens,  V vocabulary,  D hidden size.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.backbone import token_embedding
from reward_models.compat import tensor_version
from stages.adapters.config import Prompt
from stages.adapters.prefix_attention import (
    RowPrefix,
    captured_keys_and_values,
    remove_prefix,
    set_prefix,
    use_prefix_attention,
)
from stages.adapters.registration import (
    AdapterConfig,
    AdapterLayer,
    AdapterModel,
    layer_names,
    module_name,
    register,
)
from stages.data.template import text_ids


@dataclass
class PromptConfig(AdapterConfig):
    """`length` embeddings; `attention` is the architecture's name of its attention modules."""

    length: int = field(default=20)
    attention: str = field(default="self_attn")


class PromptLayer(AdapterLayer):
    """The input embedding, beside which the trained embeddings are stored."""

    adapter_layer_names = ("soft_prompt",)

    def create_containers(self) -> None:
        """Create one soft prompt an adapter."""
        self.soft_prompt = nn.ParameterDict()

    def create_adapter(self, name: str, config: PromptConfig) -> None:
        """Begin with the deviation of the embeddings; `create` puts other values in."""
        weight_VD = self.get_base_layer().get_parameter("weight")
        random_PD = torch.randn(config.length, weight_VD.shape[1]) * weight_VD.detach().std().cpu()
        self.soft_prompt[name] = nn.Parameter(random_PD)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the base's embeddings."""
        embedded: Tensor = self.base_layer(ids)
        return embedded

    def active(self) -> Tensor | None:
        """Return prompt_PD of the active adapter."""
        name = self.active_name(self.soft_prompt)
        return None if name is None else self.soft_prompt[name]


class PromptHook:
    """The forward pre-hook of a transformer that puts the soft prompt before all rows."""

    def __init__(self, attention: str) -> None:
        self.attention = attention
        self.is_running = False
        self._cached: tuple[int, int, bool] | None = None  # state of the prompt behind the prefix

    def __deepcopy__(self, memo: dict[int, Any]) -> "PromptHook":
        """Copy the hook for a copied model, whose modules have no prefix yet."""
        return PromptHook(self.attention)

    def __call__(
        self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Set the prefix where it changed, and shift positions by the prompt's length."""
        if self.is_running:
            return None
        assert isinstance(backbone, PreTrainedModel)
        layer = backbone.get_input_embeddings()
        assert isinstance(layer, PromptLayer)
        prompt_PD = layer.active()
        if prompt_PD is None:
            self._remove_prefixes(backbone)
            return None
        state = _state(prompt_PD)
        if torch.is_grad_enabled() or state is None or self._cached != state:
            self._remove_prefixes(backbone)
            self._set_prefixes(backbone, prompt_PD)
        ids = args[0] if args else kwargs.get("input_ids")
        ids = kwargs["inputs_embeds"] if ids is None else ids
        position_BL = kwargs.get("position_ids")
        if position_BL is None:
            position_BL = _positions(ids, kwargs)
        return args, {**kwargs, "position_ids": position_BL + len(prompt_PD)}

    def _remove_prefixes(self, backbone: nn.Module) -> None:
        self._cached = None
        for name, module in backbone.named_modules():
            if name.endswith(f".{self.attention}"):
                remove_prefix(module)

    def _set_prefixes(self, backbone: PreTrainedModel, prompt_PD: Tensor) -> None:
        """Run the prompt alone, in eval mode: if recomputed, it would attend to its own prefix."""
        training, self.is_running = backbone.training, True
        backbone.train(False)
        try:
            position_1P = torch.arange(len(prompt_PD), device=prompt_PD.device)[None]
            with captured_keys_and_values() as captured:
                dtype = token_embedding(backbone).weight.dtype
                embedded_1PD = prompt_PD[None].to(dtype)
                backbone(inputs_embeds=embedded_1PD, position_ids=position_1P, use_cache=False)
        finally:
            backbone.train(training)
            self.is_running = False
        if not torch.is_grad_enabled():
            self._cached = _state(prompt_PD)
        for module, (key_1HPD, value_1HPD) in captured.items():
            set_prefix(module, RowPrefix.of_every_row(key_1HPD[0], value_1HPD[0]))


class PromptModel(AdapterModel):
    """PEFT's view of the family."""

    prefix = "soft_prompt"
    layer = PromptLayer

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        assert isinstance(peft_config, PromptConfig)
        assert isinstance(model, PreTrainedModel)
        use_prefix_attention(model)
        hook = PromptHook(peft_config.attention)
        model.base_model.register_forward_pre_hook(hook, with_kwargs=True)


register("soft_prompt", PromptConfig, PromptModel)


def create(
    model: PreTrainedModel, adaptation: Prompt, tokenizer: PreTrainedTokenizerBase
) -> PeftModel:
    """Return the frozen model with a fresh soft prompt; ValueError where `text` has no token."""
    table = model.get_input_embeddings()
    weight_VD = table.get_parameter("weight").detach()
    config = PromptConfig(
        target_modules={module_name(model, table, "input embedding")},
        length=adaptation.length,
        attention=layer_names(model).attention,
    )
    adapted = get_peft_model(model, config)
    ids = _initial_ids(adaptation, tokenizer)
    if ids is not None:
        layer = model.get_input_embeddings()
        assert isinstance(layer, PromptLayer)
        with torch.no_grad():
            layer.soft_prompt["default"].copy_(weight_VD[ids])
    return adapted


def _initial_ids(adaptation: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Return token ids whose embeddings the prompt begins with."""
    match adaptation.begin:
        case "random":
            return None
        case "vocabulary":
            special = set(tokenizer.all_special_ids)
            words = [i for i in range(len(tokenizer)) if i not in special]
            indices = torch.randint(len(words), (adaptation.length,)).tolist()
            return [words[index] for index in indices]
        case "text":
            ids = text_ids(tokenizer, adaptation.text)
            if not ids:
                raise ValueError("adaptation.text has no token to begin the prompt with")
            return [ids[index % len(ids)] for index in range(adaptation.length)]


def _state(prompt_PD: Tensor) -> tuple[int, int, bool] | None:
    """Return what changes with the embeddings, or None where nothing can tell a change.

    Under inference mode tensors are others. Parameters that DeepSpeed partitions are gathered anew
    for every forward pass, at an address that may by chance be the old one, and ranks that then
    disagreed about running the prompt would wait for ever.
    """
    if "ds_id" in vars(prompt_PD):
        return None
    return prompt_PD.data_ptr(), tensor_version(prompt_PD), torch.is_inference_mode_enabled()


def _positions(ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Return the default positions: one after the other, after the cache."""
    cache = kwargs.get("past_key_values")
    before = 0 if cache is None else int(cache.get_seq_length())
    return torch.arange(before, before + ids.shape[1], device=ids.device)[None]
