"""Checks that prompts and their responses fit a model's positions, before the model is loaded."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from reward_models.context_limit import ContextLimit, context_limit
from reward_models.records import Prompt
from stages.adapters.config import Family
from stages.data.template import conversation_ids, prompt_ids

_SLACK = 8  # tokens that a template may add to a longer prompt and not to the shortest


def adapted_context_limit(source: str | Path, adaptation: Family) -> ContextLimit:
    """Return the limit of a model once a stage has put its adapter on it."""
    return context_limit(source, adaptation.num_positions)


def require_fit(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Prompt],
    new_tokens: int,
    limits: Sequence[ContextLimit],
    what: str,
) -> None:
    """Raise ValueError, naming the longest prompt, where it and its response do not fit.

    A token is at least a byte of text, so few prompts have to be cut into tokens.
    """
    tokens = [limit.tokens for limit in limits if limit.tokens is not None]
    if not tokens:
        return
    free = min(tokens) - new_tokens
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
    for limit in limits:
        limit.require(longest + new_tokens, description)


def _bytes(prompt: Prompt) -> int:
    texts = [prompt.prompt, prompt.context or "", *(turn.content for turn in prompt.history)]
    return sum(len(text.encode(errors="replace")) for text in texts)
