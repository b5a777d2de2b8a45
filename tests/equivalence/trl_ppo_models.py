"""The four tiny models of the comparison with TRL, the same in every environment.

Weights come from NumPy's generator, which gives the same numbers everywhere; torch's own
initialisation may change between versions. They are float64: in float32 a processor with other
vector instructions would round the recorded numbers differently in the sixth digit.
"""

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

VOCABULARY, END, PAD = 40, 1, 0
KINDS = ("gpt2", "llama")
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17, 18], [19, 20]]
RESPONSE = 8
SETTINGS = {"gamma": 1.0, "lam": 0.95, "kl_coef": 0.05, "cliprange": 0.2, "cliprange_value": 0.2}


def config(kind: str, **further: int) -> PretrainedConfig:
    """A small config without dropout."""
    ids = {"vocab_size": VOCABULARY, "eos_token_id": END, "pad_token_id": PAD, "bos_token_id": None}
    if kind == "gpt2":
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **off, **ids, **further)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**sizes, **heads, **ids, **further)


def language_model(kind: str, seed: int) -> PreTrainedModel:
    """A policy or reference."""
    return _filled(AutoModelForCausalLM.from_config(config(kind)), seed)


def classifier(kind: str, seed: int) -> PreTrainedModel:
    """A value or reward model."""
    return _filled(AutoModelForSequenceClassification.from_config(config(kind, num_labels=1)), seed)


def _filled(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            drawn = torch.from_numpy(generator.standard_normal(parameter.shape)).float()
            is_norm = isinstance(parameter, nn.Parameter) and parameter.dim() == 1
            parameter.copy_(1.0 + 0.1 * drawn if is_norm else 0.25 * drawn)
    return model.double().eval()
