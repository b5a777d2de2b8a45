"""Talking to policies in the terminal: every prompt is answered by each of them."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from stages.config import SamplingConfig
from stages.data.template import prompt_ids, response_text
from stages.generation import generate_responses
from stages.models import load_policy, load_tokenizer


def talk(
    folders: Mapping[str, Path], prompt: str | None, sampling: SamplingConfig, seed: int
) -> None:
    """Answer one prompt, or each line of standard input until it ends. No memory between lines."""
    speakers = [(name, load_tokenizer(path), load_policy(path)) for name, path in folders.items()]
    console = Console()
    for turn, said in enumerate([prompt] if prompt is not None else lines()):
        for name, tokenizer, policy in speakers:
            generator = torch.Generator().manual_seed(seed + turn)
            asked = [prompt_ids(tokenizer, said)]
            [answer] = generate_responses(policy, tokenizer, asked, sampling, generator=generator)
            ending = "" if answer.ended else " …"
            text = Text(response_text(tokenizer, answer.ids) + ending)
            console.print(Panel(text, title=name, title_align="left"))


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
