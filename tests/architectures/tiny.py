"""Tiny random models of many architectures, saved as folders with a byte-level tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 260
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GPT2 = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
BART = {
    "hidden_size": "d_model",
    "num_hidden_layers": "decoder_layers",
    "num_attention_heads": "decoder_attention_heads",
    "intermediate_size": "decoder_ffn_dim",
}
NAMES = {  # what some architectures call their sizes
    **dict.fromkeys(("gpt2", "gptj", "codegen", "openai-gpt", "gpt_bigcode", "ctrl"), GPT2),
    **dict.fromkeys(["bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian"], BART),
    **dict.fromkeys(["mbart", "mvp", "pegasus", "plbart", "trocr", "whisper"], BART),
    "bloom": {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    "gpt_neo": {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    "mpt": {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "max_seq_len",
    },
    "xglm": {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "attention_heads",
        "intermediate_size": "ffn_dim",
    },
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS: dict[str, Any] = {
    **GROUPED,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
WINDOWED: dict[str, Any] = {**GROUPED, "sliding_window": 16}
ALTERNATING = {**WINDOWED, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR: dict[str, Any] = {
    **EXPERTS,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA: dict[str, Any] = {
    **GROUPED,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 16,
}
DECODER: dict[str, Any] = {"is_decoder": True}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, settings)
    for settings, names in (
        ({}, "ctrl gpt2 gpt_bigcode gpt_neox openai-gpt opt bloom mpt phi xglm biogpt"),
        ({}, "persimmon fuyu gpt_neox_japanese nanochat"),
        ({}, "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart"),
        ({}, "trocr whisper roformer_encoder bert_encoder"),
        (GROUPED, "llama qwen2 qwen3 gemma granite helium nemotron olmo olmo2 starcoder2 smollm3"),
        (GROUPED, "apertus arcee bitnet cohere diffllama doge ernie4_5 glm glm4 hunyuan_v1_dense"),
        (GROUPED, "hyperclovax internlm3 jais2 phi3 seed_oss"),
        (
            EXPERTS,
            "mixtral qwen2_moe qwen3_moe olmoe phimoe granitemoe granitemoeshared ernie4_5_moe",
        ),
        (EXPERTS, "glm4_moe flex_olmo hunyuan_v1_moe minimax minimax_m2 jetmoe solar_open"),
        (LATENT, "deepseek_v2 deepseek_v3 glm4_moe_lite"),
        (ALTERNATING, "gemma2 gemma3_text cohere2 exaone4 ministral olmo3 vaultgemma cwm"),
        (WINDOWED, "mistral ministral3"),
        (LINEAR, "qwen3_next"),
        (MAMBA, "falcon_h1"),
        (DECODER, "bert big_bird electra ernie megatron-bert rembert roberta roformer camembert"),
        ({"state_size": 8}, "mamba falcon_mamba"),
    )
    for name in names.split()
    if not name.endswith("_encoder")
} | {
    "bert, an encoder": ("bert", {}),
    "codegen": ("codegen", {"rotary_dim": 4}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "stablelm": ("stablelm", {"num_key_value_heads": 2}),
    "bamba": ("bamba", {**MAMBA, "attn_layer_indices": [1]}),
    "bamba, no attention": ("bamba", MAMBA),
    "falcon, multi-query": (
        "falcon",
        {"alibi": False, "new_decoder_architecture": False, "multi_query": True},
    ),
    "falcon, new decoder": (
        "falcon",
        {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon, ALiBi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 8}),
    "gpt_oss": ("gpt_oss", {**EXPERTS, **ALTERNATING}),
    "llama4_text": (
        "llama4_text",
        {
            **EXPERTS,
            "num_local_experts": 2,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 16,
        },
    ),
    "modernbert-decoder": ("modernbert-decoder", {"local_attention": 16}),
    "mixtral, router logits": ("mixtral", {**EXPERTS, "output_router_logits": True}),
    "mamba2": (
        "mamba2",
        {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
    ),
    "jamba": (
        "jamba",
        {
            **EXPERTS,
            "mamba_d_state": 8,
            "num_experts": 2,
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "expert_layer_period": 2,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": ("lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": 16,
            "num_key_value_heads": 1,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    "rwkv": ("rwkv", {"attention_hidden_size": 32}),
    "xlm": ("xlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 4}),
    "gemma3n_text": (
        "gemma3n_text",
        {
            **WINDOWED,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": [64] * 4,
        },
    ),
    "phi3, LongRoPE": (
        "phi3",
        {
            "num_key_value_heads": 2,
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama, dynamic NTK": (
        "llama",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, with a PAD and an EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *alphabet])}
    bytewise = Tokenizer(models.BPE(vocabulary, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<eos>", pad_token="<pad>")


def config_of(name: str) -> Any:
    """The config of an architecture's tiny model."""
    kind, settings = ARCHITECTURES[name]
    renamed = {NAMES.get(kind, {}).get(key, key): value for key, value in SIZES.items()}
    return AutoConfig.for_model(kind, **(renamed | settings))


def save(name: str, folder: Path) -> Path:
    """The folder of a tiny model whose numbers, biases too, are large enough to tell apart."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
