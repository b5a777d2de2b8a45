"""Talking to one policy under the sets of several users, all answered in one batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from pipeline.chat import Conversation, lines
from pipeline.users_command import STORE
from stages.config import SamplingConfig
from stages.data.template import response_text
from stages.models import load_policy, load_tokenizer
from stages.users import generate_for_users, open_user_store


def talk_to_users(
    folders: Mapping[str, Path],
    prompt: str | None,
    sampling: SamplingConfig,
    seed: int,
    *,
    names: Sequence[str],
    store: Path | None,
) -> None:
    """Answer one prompt, or each line of standard input, under each user's set.

    Without names all users of the store answer. Raises ValueError for several policies, an unknown
    user, or a store of another base.
    """
    if len(folders) > 1:
        raise ValueError(f"--user with {len(folders)} policies; expected one, whose users answer")
    [folder] = folders.values()
    place = store if store is not None else folder / STORE
    if not place.is_dir():
        raise ValueError(f"{place}: no store of users' sets; rlhf users makes one")
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
