"""Talking to policies in the terminal: every prompt is answered by each of them."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.models.users import STORE
from reward_models.conversations import Turn
from stages.data.template import prompt_ids, response_text
from stages.generation.config import SamplingConfig
from stages.generation.generate import Sampled, generate_responses
from stages.models import load_policy, load_tokenizer
from stages.precision import inference_weights
from stages.users.train import generate_for_users, open_user_store


class Conversation:
    """The turns so far of a person and a policy."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel, answer_tokens: int
    ) -> None:
        self.tokenizer, self.policy, self.answer_tokens = tokenizer, policy, answer_tokens
        self.history: list[Turn] = []

    def prompt(self, text: str) -> list[int]:
        """Return the conversation's token ids with a new prompt.

        The oldest turns go where the policy has no positions for them beside the answer.
        """
        settings = self.policy.config.to_dict()
        limit = settings.get("max_position_embeddings", settings.get("n_positions"))
        while True:
            ids = prompt_ids(self.tokenizer, text, history=self.history)
            fits = not isinstance(limit, int) or len(ids) + self.answer_tokens <= limit
            if fits or not self.history:
                return ids
            del self.history[:2]

    def add(self, prompt: str, answer: str) -> None:
        """Add a prompt and its answer."""
        self.history += [Turn("user", prompt), Turn("assistant", answer)]


def talk(
    folders: Mapping[str, Path], prompt: str | None, sampling: SamplingConfig, seed: int
) -> None:
    """Answer one prompt, or each line of standard input until it ends, as one conversation each."""
    conversations = {
        name: Conversation(
            load_tokenizer(path),
            load_policy(path, weights=inference_weights()),
            sampling.max_new_tokens,
        )
        for name, path in folders.items()
    }

    def answer(text: str, seed: int) -> list[Sampled]:
        return [
            generate_responses(
                each.policy,
                each.tokenizer,
                [each.prompt(text)],
                sampling,
                generator=torch.Generator().manual_seed(seed),
            )[0]
            for each in conversations.values()
        ]

    _converse(conversations, prompt, answer, seed)


def talk_to_users(
    folders: Mapping[str, Path],
    prompt: str | None,
    sampling: SamplingConfig,
    seed: int,
    *,
    names: Sequence[str],
    store: Path | None,
) -> None:
    """Answer one prompt, or each line of standard input, under each user's adapter.

    Without names all users of the store answer. Raise ValueError for several policies, an unknown
    user, or a store of another base.
    """
    if len(folders) > 1:
        raise ValueError(f"--user with {len(folders)} policies; expected one, whose users answer")
    [folder] = folders.values()
    path = store if store is not None else folder / STORE
    if not path.is_dir():
        raise ValueError(f"{path}: no store of users' adapters; rlhf users makes one")
    tokenizer, policy = load_tokenizer(folder), load_policy(folder, weights=inference_weights())
    adapters = open_user_store(path, policy)
    users = list(dict.fromkeys(names)) or adapters.names()
    for name in users:  # an unknown one is named before anything is generated
        adapters.get(name)
    conversations = {
        name: Conversation(tokenizer, policy, sampling.max_new_tokens) for name in users
    }

    def answer(text: str, seed: int) -> list[Sampled]:
        return generate_for_users(
            policy,
            tokenizer,
            adapters,
            [each.prompt(text) for each in conversations.values()],
            sampling,
            users=users,
            generator=torch.Generator().manual_seed(seed),
        )

    _converse(conversations, prompt, answer, seed)


def _converse(
    conversations: Mapping[str, Conversation],
    prompt: str | None,
    answer: Callable[[str, int], Sequence[Sampled]],
    seed: int,
) -> None:
    """Print every conversation's answer to one prompt, or to each line of standard input."""
    console = Console()
    for turn, text in enumerate([prompt] if prompt is not None else _lines()):
        answers = answer(text, seed + turn)
        for (name, conversation), sampled in zip(conversations.items(), answers, strict=True):
            response = response_text(conversation.tokenizer, sampled.ids)
            conversation.add(text, response)
            ending = "" if sampled.ended else " …"
            console.print(Panel(Text(response + ending), title=name, title_align="left"))


def _lines() -> Iterator[str]:
    """Yield what is typed; `\\n` inside a line stands for a new line."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip().replace("\\n", "\n")
