"""From prompt and response to token ids, the same way at every stage.

A tokenizer with a chat template uses it; one without gets the plain form `{prompt}\n`. A context
passage stands before its prompt. The response's ids end with EOS where the response ended.
"""

from transformers import PreTrainedTokenizerBase


def user_text(prompt: str, context: str | None = None) -> str:
    """What the user says: the passage, a blank line, the prompt."""
    return prompt if context is None else f"{context}\n\n{prompt}"


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, context: str | None = None
) -> list[int]:
    """Token ids up to where the response begins."""
    return _encode(tokenizer, _prompt_text(tokenizer, prompt, context))


def response_ids(
    tokenizer: PreTrainedTokenizerBase, response: str, *, ended: bool = True
) -> list[int]:
    """Token ids of the response as it follows any prompt; with EOS at the end if it `ended`."""
    text = _response_text(tokenizer, response)
    return _encode(tokenizer, text) + ([_eos(tokenizer)] if ended else [])


def response_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """What a person reads: the ids before EOS, decoded, without surrounding white space."""
    eos = _eos(tokenizer)
    kept = ids[: ids.index(eos)] if eos in ids else ids
    return str(tokenizer.decode(kept, skip_special_tokens=True)).strip()


def _prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: str, context: str | None) -> str:
    said = user_text(prompt, context)
    if tokenizer.chat_template is None:
        return said + "\n"
    messages = [{"role": "user", "content": said}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _response_text(tokenizer: PreTrainedTokenizerBase, response: str) -> str:
    """The response with whatever the chat template puts right before it (often one space)."""
    if tokenizer.chat_template is None:
        return response
    opening = _prompt_text(tokenizer, "?", None)
    marker = "\x00"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}]
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    if not whole.startswith(opening):
        raise ValueError(
            "the chat template's generation prompt is not the start of its assistant turn"
        )
    return whole[len(opening) : whole.index(marker)] + response


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise ValueError(
            f"tokenizer '{tokenizer.name_or_path}' has no EOS token; a response could not end"
        )
    return tokenizer.eos_token_id
