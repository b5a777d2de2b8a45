"""Chat templates in the manner of well-known models, and small tokenizers that read them."""

import json
from dataclasses import dataclass

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
GENERATE = "{% if add_generation_prompt %}"


@dataclass(frozen=True)
class Chat:
    """A template, its markers, and the token that ends its turns."""

    template: str | None
    markers: tuple[str, ...] = ()
    end: str = EOS
    earlier_end: str = ""  # the one of earlier turns, where it is another
    own: str = ""  # text that it writes before an answer and leaves out of the generation prompt
    takes_system: bool = True
    plain: tuple[str, ...] = ()  # added tokens that are not special


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
IM = ("<|im_start|>", "<|im_end|>")
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
)
CHATS = {
    "chatml": Chat(CHATML + GENERATE + "<|im_start|>assistant\n{% endif %}", IM, "<|im_end|>"),
    "llama-2": Chat(
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% else %}{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}"
        + ALTERNATE.replace("in messages", "in loop_messages")
        + "{% set content = (system_message if loop.index0 == 0 else '') + m.content %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama-3": Chat(
        "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: "
        "{{ strftime_now('%d %b %Y') }}\n\n"
        "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}"
        "{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
        + GENERATE
        + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "gemma": Chat(
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        + ALTERNATE
        + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        + GENERATE
        + "{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        takes_system=False,
    ),
    "phi-3": Chat(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        + GENERATE
        + "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        "<|end|>",
    ),
    "phi-4-mini": Chat(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|' + 'end|>' }}{% endfor %}"
        + GENERATE
        + "{{ '<|' + 'assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
        (),
        "<|end|>",
        plain=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    ),
    "mistral": Chat(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}"
        "[/INST]{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
        "{% endfor %}",
        ("[INST]", "[/INST]"),
        takes_system=False,
    ),
    "qwen3": Chat(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set content = m.content %}"
        "{% set reasoning = '' %}{% if '</think>' in content %}"
        "{% set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "<|im_start|>assistant\n{% if loop.last %}{{ '<think>\n' + reasoning + '\n</think>\n\n' }}"
        "{% endif %}{{ content }}<|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        + GENERATE
        + "<|im_start|>assistant\n{% endif %}",
        IM,
        "<|im_end|>",
        own="<think>\n\n</think>\n\n",
        plain=("<think>", "</think>"),
    ),
    "deepseek": Chat(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}<\uff5cUser\uff5c>{{ m.content }}"
        "{% else %}<\uff5cAssistant\uff5c>{{ m.content.split('</think>')[-1] }}{{ eos_token }}"
        "{% endif %}{% endfor %}" + GENERATE + "<\uff5cAssistant\uff5c><think>\n{% endif %}",
        ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),
        plain=("<think>", "</think>"),
    ),
    "zephyr": Chat(
        "{% for m in messages %}\n{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}"
    ),
    "glm-4": Chat(
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        + GENERATE
        + "<|assistant|>{% endif %}",
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"),
        "<|user|>",
    ),
    "command-r": Chat(
        "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}"
        "{{ {'user': '<|USER_TOKEN|>', 'system': '<|SYSTEM_TOKEN|>',"
        " 'assistant': '<|CHATBOT_TOKEN|>'}[m.role] }}"
        "{{ m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
        + GENERATE
        + "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
        (
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
        ),
        "<|END_OF_TURN_TOKEN|>",
    ),
    "gpt-oss": Chat(
        "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}<|end|>"
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
        "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        + GENERATE
        + "<|start|>assistant{% endif %}",
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"),
        "<|return|>",
        "<|end|>",
        own="<|channel|>final<|message|>",
    ),
    "without generation prompt": Chat(CHATML, IM, "<|im_end|>", own="<|im_start|>assistant\n"),
    "none": Chat(None),
    "alpaca": Chat(
        "Below is an instruction.\n\n{% for m in messages %}"
        "{% if m.role == 'assistant' %}### Response:\n{{ m.content }}\n\n"
        "{% else %}### {{ 'Instruction' if m.role == 'user' else 'Input' }}:\n{{ m.content }}\n\n"
        "{% endif %}{% endfor %}" + GENERATE + "### Response:\n{% endif %}"
    ),
    "vicuna": Chat(
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}"
        "{% elif m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
        + GENERATE
        + "{{ 'ASSISTANT:' }}{% endif %}"
    ),
}
WORDS = [
    "hello world, the quick brown fox jumps over the lazy dog.\nWhat is it?  Nothing at all!",
    "User: Assistant: ### Instruction: [INST] [/INST] system user assistant model",
] * 20


SPECIALS = [PAD, BOS, EOS, "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(specials: list[str]) -> Tokenizer:
    """As GPT-2, Llama 3, Qwen."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(WORDS, trainer)
    return raw


def sentencepiece(specials: list[str]) -> Tokenizer:
    """As Llama 2: a space before every stretch of text, bytes for what has no piece."""
    raw = _byte_fallback(specials)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return raw


def metaspace(specials: list[str]) -> Tokenizer:
    """As Mistral: a space before the beginning alone."""
    raw = sentencepiece(specials)
    raw.normalizer = None
    raw.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return raw


def gemma(specials: list[str]) -> Tokenizer:
    """As Gemma: no space that nobody wrote."""
    raw = sentencepiece(specials)
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return raw


def unigram(specials: list[str]) -> Tokenizer:
    """Pieces by their likelihood, the special ones among them."""
    letters = sorted({letter for text in WORDS for letter in text.replace(" ", "▁")} - {"▁"})
    pieces = [*((one, 0.0) for one in specials), *((one, -20.0) for one in BYTES)]
    pieces += [(one, -6.0) for one in [*letters, "▁"]]
    pieces += [(one, -7.0) for one in ("▁hello", "▁the", "What", "fox", "turn", "end")]
    raw = Tokenizer(models.Unigram(pieces, specials.index("<unk>"), byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    raw.decoder = metaspace(specials).decoder
    raw.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in specials])
    return raw


KINDS = {make.__name__: make for make in (byte_level, sentencepiece, metaspace, gemma, unigram)}


def build(chat: Chat, kind: str = "byte_level") -> PreTrainedTokenizerFast:
    """A tokenizer of one of `KINDS` with the chat's markers and template; it puts BOS."""
    raw = KINDS[kind]([*SPECIALS, *chat.markers])
    raw.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, raw.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token="<unk>",
        additional_special_tokens=list(chat.markers),
        chat_template=chat.template,
    )
    # A normaliser that puts a space before all texts puts one into its tokens as well.
    normalized = kind != "sentencepiece"
    tokenizer.add_tokens([AddedToken(token, normalized=normalized) for token in chat.plain])
    return tokenizer


def _byte_fallback(specials: list[str]) -> Tokenizer:
    learnt = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False)
    learnt.train_from_iterator([text.replace(" ", "▁") for text in WORDS], trainer)
    model = json.loads(learnt.to_str())["model"]
    pieces = [*specials, *BYTES, *sorted(model["vocab"], key=model["vocab"].get)]
    raw = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            [tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    raw.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in specials])
    return raw
