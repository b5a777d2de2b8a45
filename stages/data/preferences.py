"""Preference pairs as others write them: TRL's formats and Anthropic's dialogues.

One JSON object a line, gzipped or not (`.gz`):

    {"prompt": "...", "chosen": "...", "rejected": "..."}
    {"chosen": "...", "rejected": "..."}             the prompt is what both begin with
    {"prompt": [messages]?, "chosen": [messages], "rejected": [messages]}   conversational

Where two texts begin alike and are dialogues ("\\n\\nHuman: ... \\n\\nAssistant: ..."), the prompt
ends with the last turn of the assistant that both share the beginning of. A pair whose two
responses are equal says nothing and is left out.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from reward_models.records import Ranking, RankingTask, Response

TURN = "\n\nAssistant:"
NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt, the response that was preferred, and the other."""

    prompt: str
    chosen: str
    rejected: str


def load_pairs(path: Path) -> tuple[list[RankingTask], list[Ranking]]:
    """A task and a ranking for each pair. Raises ValueError naming file and line on bad ones.

    Which response comes first depends on the texts alone, so that the order tells nothing.
    """
    tasks, rankings = [], []
    for number, pair in read_pairs(path):
        name = f"pair-{number:06d}"
        mirrored = sha256(f"{pair.chosen}\0{pair.rejected}".encode()).digest()[0] % 2
        texts = (pair.rejected, pair.chosen) if mirrored else (pair.chosen, pair.rejected)
        responses = tuple(
            Response(letter, text, "imported", {}) for letter, text in zip("ab", texts, strict=True)
        )
        ranks = {"a": 2, "b": 1} if mirrored else {"a": 1, "b": 2}
        tasks.append(RankingTask(name, pair.prompt, responses))
        rankings.append(Ranking(name, "unknown", "imported", ranks))
    if not tasks:
        raise ValueError(f"{path}: no pair in it")
    return tasks, rankings


def read_pairs(path: Path) -> Iterator[tuple[int, Pair]]:
    """Line numbers, from 1, and pairs that differ."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                pair = _pair(path, number, line)
                if pair.chosen != pair.rejected:
                    yield number, pair


def _pair(path: Path, number: int, line: str) -> Pair:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: not JSON ({error})") from None
    if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
        raise ValueError(f"{path}:{number}: expected an object with 'chosen' and 'rejected'")
    try:
        return _split(row)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}:{number}: {error}") from None


def _split(row: Mapping[str, Any]) -> Pair:
    chosen, rejected = _text(row["chosen"]), _text(row["rejected"])
    if row.get("prompt") is not None:
        prompt = _text(row["prompt"])
        said = (_said(row[key], prompt, text) for key, text in
                (("chosen", chosen), ("rejected", rejected)))  # fmt: skip
        return Pair(prompt.strip(), *said)
    turn = _shared(chosen, rejected).rfind(TURN)
    if turn < 0:
        raise ValueError("no 'prompt', and the two texts do not begin with the same dialogue")
    end = turn + len(TURN)
    return Pair(chosen[:turn].strip(), chosen[end:].strip(), rejected[end:].strip())


def _shared(one: str, other: str) -> str:
    """What both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    end = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    return one[:end]


def _said(value: Any, prompt: str, text: str) -> str:
    """A response alone: of messages the last one's content; a text may repeat its prompt."""
    if isinstance(value, list):
        return str(value[-1]["content"]).strip()
    return text.removeprefix(prompt).strip()


def _text(value: Any) -> str:
    """Messages as a dialogue."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a text or messages, found {type(value).__name__}")
    if len(value) == 1 and value[0]["role"] == "user":
        return str(value[0]["content"])
    return "".join(f"\n\n{NAMES[turn['role']]}: {turn['content']}" for turn in value)
