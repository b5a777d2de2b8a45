"""A compiled decoding step draws what an eager one does, and is compiled for few shapes."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from stages.adapters.config import Adaptation, Bottleneck, LoRA, Prefix
from stages.adapters.lora import merged_lora
from stages.generation import compiled as compiled_rows
from stages.models import adapt
from tests.stages.generation.test_generation import (
    VOCABULARY,
    ragged_prompts,
    respond,
    tiny,
    word_tokenizer,
)

PROMPTS = [prompt for prompt in ragged_prompts(7) for _ in range(3)]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """Record compiled graphs, by a backend that needs no compiler."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr("stages.generation.compiled.BACKEND", backend)
    monkeypatch.setattr("stages.generation.compiled._FEWEST_ROWS", 1)
    compiled_rows._compiled.cache_clear()
    torch._dynamo.reset()
    yield graphs
    compiled_rows._compiled.cache_clear()


def adapted(family: Adaptation | None, words: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model whose responses end by and by, with a set that is felt."""
    model = tiny("llama", eos_bias=3.0)
    if family is None:
        return model
    model = adapt(model, family, words)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    "family", [None, LoRA(rank=2), Bottleneck(width=4)], ids=["full", "lora", "bottleneck"]
)
def test_the_same_is_drawn(
    family: Adaptation | None,
    tokenizer: PreTrainedTokenizerFast,
    graphs: list[torch.fx.GraphModule],
) -> None:
    model = adapted(family, tokenizer)
    for batch_size in (5, 16):
        drawn = [
            respond(model, tokenizer, PROMPTS, batch_size=batch_size, compiled=compiled)
            for compiled in (False, True)
        ]
        assert drawn[0] == drawn[1]
    lengths = {len(one.ids) for one in drawn[0]}
    assert len(lengths) > 4  # rows left at different times
    assert 1 <= len(graphs) <= 4  # any number of rows, and one


def test_the_step_follows_the_weights(
    tokenizer: PreTrainedTokenizerFast, graphs: list[torch.fx.GraphModule]
) -> None:
    model = adapted(LoRA(rank=2), tokenizer)
    for _ in range(3):  # merged anew, as before each rollout
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        with merged_lora(model):
            drawn = [
                respond(model, tokenizer, PROMPTS, batch_size=16, compiled=compiled)
                for compiled in (False, True)
            ]
        assert drawn[0] == drawn[1]
    assert len(graphs) <= 4


@pytest.mark.slow  # a minute of compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_same_is_drawn_by_inductor(tokenizer: PreTrainedTokenizerFast) -> None:
    model = adapted(None, tokenizer)
    drawn = [respond(model, tokenizer, PROMPTS, compiled=compiled) for compiled in (False, True)]
    assert drawn[0] == drawn[1]


def test_what_cannot_be_compiled_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="this model's attention is 'sdpa_with_prefix'"):
        respond(adapted(Prefix(length=3), tokenizer), tokenizer, PROMPTS, compiled=True)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=VOCABULARY, num_key_value_heads=1, sliding_window=4, eos_token_id=1, **shape
    )
    with pytest.raises(ValueError, match="a layer of this model forgets tokens"):
        respond(MistralForCausalLM(config), tokenizer, PROMPTS, compiled=True)
