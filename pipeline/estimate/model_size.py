"""The size of a model and the memory of its forward and backward pass, without its weights.

The model is built from its config on tensors that have a shape and no content, adapted, and its own
forward and backward pass is run on them: parameters, what autograd keeps, and the cache of keys and
values are counted, not guessed from a formula.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.pytorch_utils import Conv1D

from pipeline.estimate.known_shapes import model_config
from reward_models.backbone import token_embedding, transformer, without_dropout
from reward_models.compat import FakeTensorMode
from stages.adapters.config import Adaptation, Full, Prompt
from stages.distributed.activation_checkpointing import checkpoint_activations
from stages.distributed.memory import Cost, cost_of
from stages.models import adapt, trainable_parameters

_DEPTHS = (2, 4)  # layers


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters of a model under an adaptation, without their values.

    `linear` are those of the linear layers inside the backbone, which quantisation reaches, and
    `largest` those of the largest one; `cached` are the numbers of one token in the KV cache.
    """

    parameters: int
    trainable: int
    linear: int
    largest: int
    width: int
    vocabulary: int
    cached: int

    @property
    def flops(self) -> float:
        """The operations of a forward pass, a token: two a weight (Kaplan et al. 2020)."""
        return 2.0 * self.parameters


@lru_cache(maxsize=64)
def model_size(source: str | Path, adaptation: Adaptation) -> ModelSize:
    """Return the size of the model that this source's config describes."""
    with torch.device("meta"):
        model = _build(source, torch.float32)
    unembedding = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(unembedding, nn.Linear)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    inside = (m for m in transformer(model).modules() if isinstance(m, nn.Linear | Conv1D))
    linear = [layer.weight.numel() for layer in inside]
    trainable, is_new = _num_trainable(source, adaptation), not isinstance(adaptation, Full)
    return ModelSize(
        parameters=parameters + (trainable if is_new else 0),
        trainable=trainable,
        linear=sum(linear),
        largest=max(linear, default=0),
        width=unembedding.in_features,
        vocabulary=unembedding.out_features,
        cached=_cached_numbers(source),
    )


@lru_cache(maxsize=256)
def pass_cost(
    source: str | Path,
    adaptation: Adaptation,
    tokens: int,
    *,
    weights: torch.dtype = torch.float32,
    compute: torch.dtype = torch.float32,
    checkpointing: bool = False,
) -> Cost:
    """Return the peak of a forward and a backward pass over rows of so many tokens, in bytes.

    It counts up to the hidden states, without the weights and their gradients; copies of weights
    that autocast makes are its fixed part. All layers are alike, so two depths say what each adds.
    """
    layers = model_config(source).get_text_config().num_hidden_layers
    count = partial(
        _pass_cost, source, adaptation, tokens, weights, compute, checkpointing=checkpointing
    )
    if layers <= _DEPTHS[1] or (isinstance(adaptation, Full) and adaptation.top_layers):
        return count(layers)
    low, high = (count(depth) for depth in _DEPTHS)
    steps, left = _DEPTHS[1] - _DEPTHS[0], layers - _DEPTHS[1]
    fixed, each = (
        many + (many - few) * left // steps
        for few, many in ((low.fixed, high.fixed), (low.each, high.each))
    )
    return Cost(fixed, each)


def _pass_cost(
    source: str | Path,
    adaptation: Adaptation,
    tokens: int,
    weights: torch.dtype,
    compute: torch.dtype,
    layers: int,
    *,
    checkpointing: bool,
) -> Cost:
    backbone = transformer(_adapted(source, adaptation, weights, layers))
    if checkpointing:
        checkpoint_activations(backbone)
    # Where weights are already in 16 bits, nothing is cast.
    casts = compute is not torch.float32 and weights is torch.float32
    beside = 0  # weights and their gradients

    def work_on(rows: int) -> Callable[[], None]:
        def work() -> None:
            nonlocal beside
            beside = _give_storage(backbone)
            with torch.autocast("cpu", compute) if casts else nullcontext():
                state_BLD = _forward(backbone, rows, tokens, adaptation).last_hidden_state
            assert state_BLD is not None
            if state_BLD.requires_grad:
                torch.autograd.backward(state_BLD.float().sum())

        return work

    cost = cost_of(work_on)
    return Cost(max(0, cost.fixed - beside), cost.each)


@lru_cache(maxsize=64)
def _cached_numbers(source: str | Path) -> int:
    with FakeTensorMode(), torch.no_grad():
        backbone = transformer(_build(source, torch.float32))
        outputs = _forward(backbone, 1, 1, Full(), use_cache=True)
    cache = cast(list[tuple[Tensor, ...]], outputs.past_key_values)
    return sum(part.numel() for layer in cache for part in layer[:2])


def _forward(
    backbone: PreTrainedModel,
    rows: int,
    tokens: int,
    adaptation: Adaptation,
    *,
    use_cache: bool = False,
) -> BaseModelOutputWithPast:
    """Run the backbone on padded rows; a soft prompt is embeddings that need a gradient."""
    prompt = isinstance(adaptation, Prompt)
    length = tokens + (adaptation.length if isinstance(adaptation, Prompt) else 0)
    ids_BL = torch.zeros(rows, length, dtype=torch.long)
    embedded_BLD = token_embedding(backbone)(ids_BL).requires_grad_() if prompt else None
    outputs: BaseModelOutputWithPast = backbone(
        input_ids=None if prompt else ids_BL,
        inputs_embeds=embedded_BLD,
        attention_mask=torch.ones_like(ids_BL),
        position_ids=torch.arange(length).expand(rows, -1),
        use_cache=use_cache,
    )
    return outputs


def _num_trainable(source: str | Path, adaptation: Adaptation) -> int:
    """Return the number of parameters that `adaptation` trains."""
    if isinstance(adaptation, Prompt):
        with torch.device("meta"):
            return adaptation.length * token_embedding(_build(source, torch.float32)).embedding_dim
    return trainable_parameters(_adapted(source, adaptation, torch.float32))


def _adapted(
    source: str | Path, adaptation: Adaptation, weights: torch.dtype, layers: int | None = None
) -> PreTrainedModel:
    """Return the model without values, adapted; what is trained is float32."""
    with torch.device("meta"):
        model = _build(source, weights, layers)
        if isinstance(adaptation, Prompt):  # its initialisation needs weights
            return model.requires_grad_(False)
        unused = PreTrainedTokenizerBase()  # type: ignore[no-untyped-call]
        adapted = adapt(model, adaptation, unused)
        if not isinstance(adaptation, Full):
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
    return adapted


def _give_storage(model: nn.Module) -> int:
    """Put empty tensors in the place of those without content; return the bytes, gradients too."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        own = (
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        )
        for name, tensor in own:
            if id(tensor) not in made:
                made[id(tensor)] = _empty_like(tensor)
            setattr(module, name, made[id(tensor)])
    gradients = (x.grad.nbytes for x in made.values() if x.grad is not None)
    return sum(x.nbytes for x in made.values()) + sum(gradients)


def _empty_like(tensor: Tensor) -> Tensor:
    empty = torch.empty(tuple(tensor.shape), dtype=tensor.dtype)
    if not isinstance(tensor, nn.Parameter):
        return empty
    parameter = nn.Parameter(empty, requires_grad=tensor.requires_grad)
    if parameter.requires_grad:
        parameter.grad = torch.empty_like(empty)
    return parameter


def _build(source: str | Path, dtype: torch.dtype, layers: int | None = None) -> PreTrainedModel:
    config = without_dropout(model_config(source))
    if layers is not None:
        config.get_text_config().num_hidden_layers = layers
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=dtype
    )
    return model
