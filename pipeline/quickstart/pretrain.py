"""The base model of the quickstart: a small Llama trained from scratch on the invented world.

The trained files ship with the package; `rlhf pretrain` makes them again from the same seed.
Documents are fresh at every step, grouped by length so that little padding is computed, and never
share a row.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.quickstart import corpus
from stages.data.padding import pad_right
from stages.progress import Report, Step, silent

PAD, EOS = "<|pad|>", corpus.END
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\n"
    "{% else %}A: {{ m['content'] }}" + EOS + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of the base model's training; with the library versions they fix its weights."""

    seed: int = 0
    mixture: Literal["web", "study", "marked", "threads", "reviews"] = "web"
    steps: int = 1000
    schedule_steps: int = 2200  # the cosine's length; a run may stop before its end
    documents_per_step: int = 192
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    vocabulary: int = 1280
    hidden_size: int = 128
    layers: int = 6
    heads: int = 4
    intermediate_size: int = 352
    save_every: int = 250


def pretrain(recipe: Recipe, out: Path, start: Path | None = None, report: Report = silent) -> None:
    """Train tokenizer and model; write a folder of fp16 weights with `recipe.json` beside them.

    With `start`, a folder written before, its tokenizer and weights are trained further.
    """
    torch.manual_seed(recipe.seed)
    if start is None:
        tokenizer = train_tokenizer(recipe)
        model = LlamaForCausalLM(_config(recipe, tokenizer))
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    model.train()
    batches = _batches(recipe, tokenizer)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        input_BL, label_BL = next(batches)
        loss = model(input_ids=input_BL, labels=label_BL, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        report(Step(step + 1, recipe.steps, {"pretrain/loss_nats_per_token": float(loss.detach())}))
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            _save(model, tokenizer, recipe, step + 1, out)


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on a sample of the corpus; add the later stages' chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = Random(f"tokenizer/{recipe.seed}")
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((corpus.document(rng) for _ in range(20_000)), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, chat_template=CHAT_TEMPLATE
    )


def _save(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    step: int,
    out: Path,
) -> None:
    """Save in half precision: half the size, and finer than the last steps of training."""
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.save_pretrained(out, state_dict=half)
    tokenizer.save_pretrained(out)
    (out / "recipe.json").write_text(json.dumps({**asdict(recipe), "step": step}, indent=2) + "\n")


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _schedule(step: int, recipe: Recipe) -> float:
    """Return the factor of a linear warm-up, then of a cosine down to 2 % of the peak."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.schedule_steps - recipe.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless (input_BL, label_BL), right-padded; the loss skips padding (-100)."""
    rng = Random(f"pretraining/{recipe.seed}")
    size = recipe.documents_per_step
    while True:
        texts = [corpus.document(rng, recipe.mixture) for _ in range(16 * size)]
        rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
        rows.sort(key=len)
        starts = list(range(0, len(rows), size))
        rng.shuffle(starts)
        for start in starts:
            input_BL, mask_BL = pad_right(rows[start : start + size], int(tokenizer.pad_token_id))
            yield input_BL, input_BL.masked_fill(~mask_BL, -100)
