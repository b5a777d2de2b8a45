"""The shapes of public models that recipes and docs name, so that nothing has to be fetched.

The numbers are those of each model's published config.json; a test holds them against the number of
parameters that its page states.
"""

from collections.abc import Mapping
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from reward_models.model_files import LOAD_ERRORS, check_source, first_line

Shape = tuple[str, Mapping[str, int]]


def _llama(
    vocabulary: int, width: int, layers: int, heads: tuple[int, int], inner: int, *, tied: bool
) -> Shape:
    return "llama", _decoder(vocabulary, width, layers, heads, inner, tied)


def _qwen(
    kind: str,
    vocabulary: int,
    width: int,
    layers: int,
    heads: tuple[int, int],
    inner: int,
    *,
    tied: bool,
) -> Shape:
    head_size = {"head_dim": 128} if kind == "qwen3" else {}
    return kind, {**_decoder(vocabulary, width, layers, heads, inner, tied), **head_size}


def _decoder(
    vocabulary: int, width: int, layers: int, heads: tuple[int, int], inner: int, tied: bool
) -> Mapping[str, int]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": inner,
        "tie_word_embeddings": tied,
    }


KNOWN: dict[str, Shape] = {
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
    "HuggingFaceTB/SmolLM2-135M": _llama(49152, 576, 30, (9, 3), 1536, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B": _llama(49152, 2048, 24, (32, 32), 8192, tied=True),
    "meta-llama/Llama-3.2-1B": _llama(128256, 2048, 16, (32, 8), 8192, tied=True),
    "meta-llama/Llama-3.1-8B": _llama(128256, 4096, 32, (32, 8), 14336, tied=False),
    "Qwen/Qwen2.5-0.5B": _qwen("qwen2", 151936, 896, 24, (14, 2), 4864, tied=True),
    "Qwen/Qwen2.5-1.5B": _qwen("qwen2", 151936, 1536, 28, (12, 2), 8960, tied=True),
    "Qwen/Qwen2.5-3B": _qwen("qwen2", 151936, 2048, 36, (16, 2), 11008, tied=True),
    "Qwen/Qwen2.5-7B": _qwen("qwen2", 152064, 3584, 28, (28, 4), 18944, tied=False),
    "Qwen/Qwen3-0.6B": _qwen("qwen3", 151936, 1024, 28, (16, 8), 3072, tied=True),
    "Qwen/Qwen3-1.7B": _qwen("qwen3", 151936, 2048, 28, (16, 8), 6144, tied=True),
    "Qwen/Qwen3-8B": _qwen("qwen3", 151936, 4096, 36, (32, 8), 12288, tied=False),
}


def model_config(source: str | Path) -> PretrainedConfig:
    """Return the config of a folder, a known model, or the hub; ValueError where there is none.

    An instruction-tuned version (`…-Instruct`, `…-Base`) has the shape of its family.
    """
    name = str(source).removesuffix("-Instruct").removesuffix("-Base")
    if name in KNOWN and not Path(source).is_dir():
        kind, settings = KNOWN[name]
        config: PretrainedConfig = AutoConfig.for_model(kind, **settings)
        return config
    check_source(source)
    try:
        config = AutoConfig.from_pretrained(str(source))
    except LOAD_ERRORS as error:
        raise ValueError(f"{source}: its size is not known ({first_line(error)})") from None
    return config
