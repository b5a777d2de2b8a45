"""Do prompts, with the responses that are to follow, fit a model? Asked before it is loaded."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from reward_models.positions import Room, room_of
from reward_models.records import Prompt
from stages.adapters.config import Full, Restricted
from stages.adapters.config import Prompt as SoftPrompt
from stages.data.template import conversation_ids, prompt_ids
from stages.models import load_tokenizer
from stages.ppo.config import PPOConfig
from stages.reward.config import RewardConfig

_SLACK = 8  # tokens that a template may add to a longer prompt and not to the shortest


def room_for(source: str | Path, adaptation: Full | Restricted) -> Room:
    """The room of a model once a stage has put its set on it."""
    return room_of(source, soft_prompt(adaptation))


def soft_prompt(adaptation: Full | Restricted) -> int:
    """The positions that a set takes."""
    return adaptation.length if isinstance(adaptation, SoftPrompt) else 0


def within_positions(config: RewardConfig, source: str | Path) -> RewardConfig:
    """The settings with a `max_tokens` that the model on this base has positions for."""
    room = room_for(source, config.adaptation)
    return config.model_copy(update={"max_tokens": room.at_most(config.max_tokens)})


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


def require_ppo_fits(
    config: PPOConfig, policy: str | Path, reward_model: Path, prompts: Sequence[Prompt]
) -> None:
    """Raise ValueError for texts longer than policy or reward model have positions for."""
    rooms = [
        Room("the policy", room_for(policy, config.adaptation).tokens),
        Room("the reward model", room_of(reward_model).tokens),
    ]
    require_fit(load_tokenizer(policy), prompts, config.sampling.max_new_tokens, rooms, "PPO")
    if config.pretraining is not None:
        rooms[0].require(config.pretraining.tokens_per_example, "pretraining.tokens_per_example")


def _bytes(prompt: Prompt) -> int:
    texts = [prompt.prompt, prompt.context or "", *(turn.content for turn in prompt.history)]
    return sum(len(text.encode(errors="replace")) for text in texts)
