"""The size of a model and the memory of its forward pass, without its weights.

The model is built from its config on tensors that have a shape and no content, and its own forward
pass is run on them: parameters, the activations that autograd keeps for the backward pass, and the
cache of keys and values are counted, not guessed from a formula.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward_models.backbone import without_dropout
from reward_models.compat import FakeTensorMode
from reward_models.model_files import LOAD_ERRORS, check_source, first_line
from stages.adapters.config import Adaptation, Full, Prompt
from stages.distributed.memory import peak_bytes
from stages.models import adapt, trainable_parameters

_ROWS = 8  # of the dry run, so that what building takes for a moment is small beside them

# Public models that presets and examples name, so that nothing has to be fetched to measure them.
KNOWN: dict[str, tuple[str, dict[str, int]]] = {
    "EleutherAI/pythia-1.4b": (
        "gpt_neox",
        {"vocab_size": 50304, "hidden_size": 2048, "num_hidden_layers": 24}
        | {"num_attention_heads": 16, "intermediate_size": 8192},
    ),
    "EleutherAI/pythia-6.9b": (
        "gpt_neox",
        {"vocab_size": 50432, "hidden_size": 4096, "num_hidden_layers": 32}
        | {"num_attention_heads": 32, "intermediate_size": 16384},
    ),
    "tiiuae/falcon-7b": (
        "falcon",
        {"vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32}
        | {"num_attention_heads": 71, "multi_query": True, "parallel_attn": True}
        | {"bias": False, "alibi": False},
    ),
    "tiiuae/falcon-180B": (
        "falcon",
        {"vocab_size": 65024, "hidden_size": 14848, "num_hidden_layers": 80}
        | {"num_attention_heads": 232, "num_kv_heads": 8, "new_decoder_architecture": True}
        | {"parallel_attn": True, "bias": False, "alibi": False},
    ),
    "HuggingFaceTB/SmolLM2-135M": (
        "llama",
        {"vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30}
        | {"num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536}
        | {"tie_word_embeddings": True},
    ),
}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters of a model under an adaptation; the KV cache is of one token, in bytes."""

    parameters: int
    trainable: int
    width: int
    vocabulary: int
    cache_bytes: int

    @property
    def flops(self) -> float:
        """The operations of a forward pass, a token: two a weight (Kaplan et al. 2020)."""
        return 2.0 * self.parameters


def model_config(source: str | Path) -> PretrainedConfig:
    """Return the config of a folder, a known model, or the hub; ValueError where there is none."""
    if str(source) in KNOWN and not Path(source).is_dir():
        kind, settings = KNOWN[str(source)]
        config: PretrainedConfig = AutoConfig.for_model(kind, **settings)
        return config
    check_source(source)
    try:
        config = AutoConfig.from_pretrained(str(source))
    except LOAD_ERRORS as error:
        raise ValueError(f"{source}: its size is not known ({first_line(error)})") from None
    return config


def model_size(source: str | Path, adaptation: Adaptation) -> ModelSize:
    """Return the size of the model that this source's config describes."""
    with torch.device("meta"):
        model = _build(model_config(source))
    unembedding = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(unembedding, nn.Linear)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trainable, is_new = _num_trainable(model, adaptation), not isinstance(adaptation, Full)
    return ModelSize(
        parameters=parameters + (trainable if is_new else 0),
        trainable=trainable,
        width=unembedding.in_features,
        vocabulary=unembedding.out_features,
        cache_bytes=_cache_bytes(source),
    )


@lru_cache(maxsize=64)
def activation_bytes(source: str | Path, tokens: int) -> int:
    """Return the activations of one row of so many tokens, up to the hidden states, in bytes.

    All weights are trained; an adapter needs a little less.
    """
    weights = 0

    def forward() -> None:
        nonlocal weights
        model = _build(model_config(source))  # all of it stays, so that no moment of freeing counts
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        _forward(_backbone(model), _ROWS, tokens, use_cache=False)

    return (peak_bytes(forward) - weights) // _ROWS


@lru_cache(maxsize=64)
def _cache_bytes(source: str | Path) -> int:
    with FakeTensorMode(), torch.no_grad():
        cache = _forward(_backbone(_build(model_config(source))), 1, 1, use_cache=True)
    assert cache is not None
    return sum(key_or_value.nbytes for layer in cache for key_or_value in layer[:2])


def _forward(
    backbone: PreTrainedModel, rows: int, tokens: int, *, use_cache: bool
) -> list[tuple[Tensor, ...]] | None:
    ids_BL = torch.zeros(rows, tokens, dtype=torch.long)
    output = backbone(
        input_ids=ids_BL,
        attention_mask=torch.ones_like(ids_BL),
        position_ids=torch.arange(tokens).expand(rows, -1),
        use_cache=use_cache,
    )
    return list(output.past_key_values) if use_cache else None


def _num_trainable(model: PreTrainedModel, adaptation: Adaptation) -> int:
    """Return the number of parameters that `adaptation` trains."""
    table = model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    if isinstance(adaptation, Prompt):  # its initialisation needs weights
        return adaptation.length * table.embedding_dim
    with torch.device("meta"):
        unused = PreTrainedTokenizerBase()  # type: ignore[no-untyped-call]
        return trainable_parameters(adapt(model, adaptation, unused))


def _build(config: PretrainedConfig) -> PreTrainedModel:
    without_dropout(config)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32
    )
    return model


def _backbone(model: PreTrainedModel) -> PreTrainedModel:
    backbone = model.base_model
    assert isinstance(backbone, PreTrainedModel)
    return backbone
