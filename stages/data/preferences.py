"""Preference pairs in others' formats: TRL's formats and Anthropic's dialogues.

A row of any file that reward_models/row_files.py reads:

    {"prompt": "...", "chosen": "...", "rejected": "..."}
    {"chosen": "...", "rejected": "..."}             dialogues; the prompt is what both begin with
    {"prompt": ..., "chosen": [messages], "rejected": [messages]}     conversational
    {"chosen": [messages], "rejected": [messages]}   equal but for the last turn

`context` and `category` are kept. A prompt is parsed as everywhere, by
reward_models/conversations.py, and its responses are left as they are; only where both begin with
the whole prompt, and it is a dialogue or messages, is it removed. A pair whose responses are equal
is left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from os.path import commonprefix
from pathlib import Path
from typing import Any

from reward_models.conversations import (
    ASSISTANT_TURN,
    Conversation,
    Turn,
    parse_dialogue,
    parse_turns,
    prompt_turns,
    question,
)
from reward_models.records import Ranking, RankingTask
from reward_models.row_files import read_rows

Turns = tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt, the response that was preferred, and the other."""

    prompt: Conversation
    chosen: str
    rejected: str
    about: Mapping[str, Any]  # context and category, where the row has them


def load_pairs(path: Path) -> tuple[list[RankingTask], list[Ranking]]:
    """Return a task and a ranking for each pair; ValueError names file and line of bad ones.

    The order of the responses depends on their texts alone, so that it reveals nothing.
    """
    tasks, rankings = [], []
    for number, where, pair in read_pairs(path):
        name = f"pair-{number:06d}"
        mirrored = sha256(f"{pair.chosen}\0{pair.rejected}".encode()).digest()[0] % 2
        texts = (pair.rejected, pair.chosen) if mirrored else (pair.chosen, pair.rejected)
        responses = [
            {"id": letter, "text": text, "model": "imported"}
            for letter, text in zip("ab", texts, strict=True)
        ]
        ranks = {"a": 2, "b": 1} if mirrored else {"a": 1, "b": 2}
        row = {"id": name, "messages": pair.prompt.turns, "responses": responses, **pair.about}
        try:
            tasks.append(RankingTask.from_json(row))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        rankings.append(Ranking(name, "unknown", "imported", ranks))
    if not tasks:
        raise ValueError(f"{path}: no pair in it")
    return tasks, rankings


def read_pairs(path: Path) -> Iterator[tuple[int, str, Pair]]:
    """Yield the number of a row, from 1, its location and its pair, if its responses differ."""
    for number, (where, row) in enumerate(read_rows(path), 1):
        try:
            pair = _pair(row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if pair.chosen.strip() != pair.rejected.strip():
            yield number, where, pair


def _pair(row: Mapping[str, Any]) -> Pair:
    if not {"chosen", "rejected"} <= row.keys():
        raise ValueError(f"expected an object with 'chosen' and 'rejected', found {sorted(row)}")
    about = {name: row[name] for name in ("context", "category") if row.get(name) is not None}
    chosen, rejected = (parse_turns(row[name], name) for name in ("chosen", "rejected"))
    prompt = _prompt(row, is_text=chosen is None and rejected is None)
    if chosen is None and rejected is None:
        texts = (str(row["chosen"]), str(row["rejected"]))
        if prompt is None:
            return Pair(*_of_dialogues(*texts), about)
        return Pair(question(prompt), *_after(texts, row.get("prompt")), about)
    ends = [
        _conversation(name, prompt or (), turns or (Turn("assistant", row[name]),))
        for name, turns in (("chosen", chosen), ("rejected", rejected))
    ]
    if ends[0][:-1] != ends[1][:-1]:
        raise ValueError("'chosen' and 'rejected' differ before their last turn")
    if len(ends[0]) < 2:
        raise ValueError("no 'prompt', and 'chosen' has one turn only")
    return Pair(question(ends[0][:-1]), ends[0][-1].content, ends[1][-1].content, about)


def _prompt(row: Mapping[str, Any], *, is_text: bool) -> Turns | None:
    """Return the turns of the prompt; `messages` beside conversations are ignored."""
    names = ("prompt", "conversations", "system", *(("messages",) if is_text else ()))
    return prompt_turns({name: row[name] for name in names if row.get(name) not in (None, "")})


def _after(texts: tuple[str, str], prompt: object) -> tuple[str, str]:
    """Return the responses; those to a dialogue without its text, if both repeat it, and spaces."""
    if not isinstance(prompt, str) or parse_dialogue(prompt) is None:
        return texts
    if all(text.startswith(prompt) for text in texts):
        texts = (texts[0].removeprefix(prompt), texts[1].removeprefix(prompt))
    return texts[0].strip(), texts[1].strip()


def _of_dialogues(chosen: str, rejected: str) -> tuple[Conversation, str, str]:
    """Split two dialogues at the last answer whose beginning they share."""
    shared = commonprefix([chosen, rejected])  # noqa: RUF071  # characters are meant
    end = shared.rfind(ASSISTANT_TURN)
    while end >= 0:
        turns = parse_dialogue(shared[: end + len(ASSISTANT_TURN)])
        if turns is not None:
            rest = end + len(ASSISTANT_TURN)
            return question(turns), chosen[rest:].strip(), rejected[rest:].strip()
        end = shared.rfind(ASSISTANT_TURN, 0, end)
    raise ValueError("no 'prompt', and the two texts do not begin with the same dialogue")


def _conversation(name: str, prompt: Turns, turns: Turns) -> Turns:
    """Return a whole conversation that ends with the assistant: the prompt's turns and these."""
    if turns[-1].role != "assistant":
        raise ValueError(
            f"'{name}' ends with the {turns[-1].role}'s turn, expected the assistant's"
        )
    if not prompt or turns[: len(prompt)] == prompt:
        return turns
    if turns[0].role == "assistant":
        return (*prompt, *turns)
    questions = [turn for turn in turns[:-1] if turn.role == "user"]
    if len(prompt) == 1 and questions and questions[-1] == prompt[0]:
        return turns  # the prompt repeats the user's last turn
    raise ValueError(f"'{name}' neither answers nor repeats the prompt")
