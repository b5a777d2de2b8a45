"""Talking to policies in the terminal: every prompt is answered by each of them."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.cli.users_command import STORE
from reward_models.conversations import Turn
from stages.data.template import prompt_ids, response_text
from stages.generation.config import SamplingConfig
from stages.generation.generate import generate_responses
from stages.models import load_policy, load_tokenizer
from stages.users.train import generate_for_users, open_user_store


def talk(
    folders: Mapping[str, Path], prompt: str | None, sampling: SamplingConfig, seed: int
) -> None:
    """Answer one prompt, or each line of standard input until it ends, as one conversation each."""
    speakers = [
        (name, load_tokenizer(path), load_policy(path), Conversation())
        for name, path in folders.items()
    ]
    console = Console()
    for turn, said in enumerate([prompt] if prompt is not None else lines()):
        for name, tokenizer, policy, conversation in speakers:
            generator = torch.Generator().manual_seed(seed + turn)
            asked = [conversation.asked(tokenizer, policy, said, sampling.max_new_tokens)]
            [answer] = generate_responses(policy, tokenizer, asked, sampling, generator=generator)
            text = response_text(tokenizer, answer.ids)
            conversation.add(said, text)
            ending = "" if answer.ended else " …"
            console.print(Panel(Text(text + ending), title=name, title_align="left"))


class Conversation:
    """The turns so far of a person and a policy."""

    def __init__(self) -> None:
        self.history: list[Turn] = []

    def asked(
        self, tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel, said: str, answer: int
    ) -> list[int]:
        """Token ids of the conversation; its oldest turns go where the policy has no place for
        them beside an `answer` of so many tokens.
        """
        settings = policy.config.to_dict()
        room = settings.get("max_position_embeddings", settings.get("n_positions"))
        while True:
            ids = prompt_ids(tokenizer, said, history=self.history)
            if not self.history or not isinstance(room, int) or len(ids) + answer <= room:
                return ids
            del self.history[:2]

    def add(self, said: str, answer: str) -> None:
        """Remember a prompt and its answer."""
        self.history += [Turn("user", said), Turn("assistant", answer)]


def lines() -> Iterator[str]:
    """What the person types; `\\n` inside a line stands for a new line."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip().replace("\\n", "\n")


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

    Without names all users of the store answer. Raises ValueError for several policies, an unknown
    user, or a store of another base.
    """
    if len(folders) > 1:
        raise ValueError(f"--user with {len(folders)} policies; expected one, whose users answer")
    [folder] = folders.values()
    place = store if store is not None else folder / STORE
    if not place.is_dir():
        raise ValueError(f"{place}: no store of users' adapters; rlhf users makes one")
    tokenizer, policy = load_tokenizer(folder), load_policy(folder)
    kept = open_user_store(place, policy)
    chosen = list(dict.fromkeys(names)) or kept.names()
    kept.get_all(chosen)  # an unknown user is named before anything is asked
    conversations = {name: Conversation() for name in chosen}
    console = Console()
    for turn, said in enumerate([prompt] if prompt is not None else lines()):
        answers = generate_for_users(
            policy,
            tokenizer,
            kept,
            [
                one.asked(tokenizer, policy, said, sampling.max_new_tokens)
                for one in conversations.values()
            ],
            sampling,
            users=chosen,
            generator=torch.Generator().manual_seed(seed + turn),
        )
        for name, answer in zip(chosen, answers, strict=True):
            text = response_text(tokenizer, answer.ids)
            conversations[name].add(said, text)
            ending = "" if answer.ended else " …"
            console.print(Panel(Text(text + ending), title=name, title_align="left"))
