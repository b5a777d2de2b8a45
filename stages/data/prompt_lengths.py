"""A check, before a model is loaded, that prompts and their responses fit its positions."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from reward_models.positions import Room
from reward_models.records import Prompt
from stages.data.template import conversation_ids, prompt_ids

_SLACK = 8  # tokens that a template may add to a longer prompt and not to the shortest


def require_fit(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Prompt],
    new_tokens: int,
    rooms: Sequence[Room],
    what: str,
) -> None:
    """Raise ValueError, naming the longest prompt, where it and its response do not fit.

    A token is at least a byte of text, so few prompts have to be cut into tokens.
    """
    limits = [room.tokens for room in rooms if room.tokens is not None]
    if not limits:
        return
    free = min(limits) - new_tokens
    each = len(prompt_ids(tokenizer, "a")) + _SLACK
    may_be = [p for p in prompts if _bytes(p) + each * (1 + len(p.history)) > free]
    lengths = [len(conversation_ids(tokenizer, prompt)) for prompt in may_be]
    if not lengths:
        return
    longest = max(lengths)
    text = may_be[lengths.index(longest)].prompt[:40]
    description = (
        f"{what} (the longest prompt, '{text}', has {longest}; {new_tokens} for its response)"
    )
    for room in rooms:
        room.require(longest + new_tokens, description)


def _bytes(prompt: Prompt) -> int:
    texts = [prompt.prompt, prompt.context or "", *(turn.content for turn in prompt.history)]
    return sum(len(text.encode(errors="replace")) for text in texts)
