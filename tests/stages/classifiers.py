"""Reward models as other libraries leave them: tiny classifiers with tokenizers of their own."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, as GPT-2's without its merges; PAD is EOS, as there."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {text: index for index, text in enumerate(special + letters)}
    plain = Tokenizer(models.BPE(vocabulary, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:],
    )
    tokenizer.chat_template = template
    return tokenizer


def gpt2_classifier(
    folder: Path, template: str | None = TEMPLATE, *, labels: int = 1, **config: object
) -> Path:
    """A saved GPT-2 with a head of scores; by default it has a chat template and PAD."""
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 512, "pad_token_id": 0}
    shape = GPT2Config(vocab_size=259, **{**settings, **config})
    shape.num_labels = labels
    with torch.random.fork_rng():
        torch.manual_seed(1)
        GPT2ForSequenceClassification(shape).save_pretrained(str(folder))
    byte_tokenizer(template).save_pretrained(str(folder))
    return folder


def bert_classifier(folder: Path) -> Path:
    """A saved BERT that scores pairs of a question and an answer, as OpenAssistant's DeBERTa."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789:"
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *letters, *(f"##{x}" for x in letters)]
    plain = Tokenizer(models.WordPiece({x: n for n, x in enumerate(pieces)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", **names)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    shape = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    shape.num_labels = 1
    with torch.random.fork_rng():
        torch.manual_seed(2)
        BertForSequenceClassification(shape).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def lora_classifier(folder: Path, base: Path, *, head: bool = True) -> Path:
    """An adapter on a classifier, as TRL's RewardTrainer saves it with PEFT; or one of no head."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = GPT2ForSequenceClassification.from_pretrained(str(base), num_labels=1)
        lora = LoraConfig(
            r=2,
            target_modules=["c_attn"],
            init_lora_weights=False,
            task_type="SEQ_CLS" if head else None,
            modules_to_save=["score"] if head else None,
        )
        adapted = get_peft_model(model, lora)
        if head:
            with torch.no_grad():
                adapted.base_model.model.score.modules_to_save["default"].weight.mul_(3)
        adapted.save_pretrained(str(folder))
    byte_tokenizer().save_pretrained(str(folder))
    return folder
