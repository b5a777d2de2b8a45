"""Conversations of any accepted format as turns of a role and a text.

    [{"role": "user", "content": "..."}, ...]       messages, as chat templates take them
    [{"from": "human", "value": "..."}, ...]        ShareGPT's
    "\\n\\nHuman: ...\\n\\nAssistant: ..."              Anthropic's dialogues
    "[{\\"role\\": ...}]"                             messages as JSON text, as tables hold them

A content is a text or a list of parts of type text. What is no text (tool calls, images, null) is
refused, because a model would be trained on something else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Literal, get_args

from reward_models.row_files import json_value, whole_characters

Role = Literal["system", "user", "assistant"]
_ROLES: Mapping[object, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_CALLS = ("tool_calls", "function_call", "audio")
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
ASSISTANT_TURN = "\n\nAssistant:"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(
                f"a message has the role {self.role!r}, expected one of {', '.join(get_args(Role))}"
            )
        if not isinstance(self.content, str):
            raise ValueError(
                f"a message's content is {type(self.content).__name__}, expected a string"
            )

    def __str__(self) -> str:
        return f"{self.role}: {self.content}"

    def to_json(self) -> dict[str, str]:
        """The JSON object."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns before the last user's, the text of that one, and the response if there is one."""

    history: tuple[Turn, ...]
    prompt: str
    response: str | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Return all turns before the response."""
        return (*self.history, Turn("user", self.prompt))


def parse_turns(value: object, name: str) -> tuple[Turn, ...] | None:
    """Return the turns of messages; None for a plain text; ValueError for anything else."""
    if isinstance(value, str):
        value = _messages_in(value)
        if value is None:
            return None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"'{name}' is {type(value).__name__}, expected a string or messages")
    if not value:
        raise ValueError(f"'{name}' is an empty list, expected messages")
    return tuple(_turn(message, name) for message in value)


def parse_dialogue(text: str) -> tuple[Turn, ...] | None:
    """Return the turns of a text "Human: ... Assistant:" without a response; None for others.

    Adjacent messages of one role are one turn.
    """
    whole = text if text.startswith("\n\n") else f"\n\n{text}"
    if not (whole.startswith("\n\nHuman:") and whole.rstrip().endswith(ASSISTANT_TURN)):
        return None
    pieces = _SPEAKER.split(whole.rstrip().removesuffix(ASSISTANT_TURN))
    turns: list[Turn] = []
    for speaker, words in zip(pieces[1::2], pieces[2::2], strict=True):
        role: Role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, f"{turns[-1].content}\n\n{words.strip()}")
        else:
            turns.append(Turn(role, words.strip()))
    return tuple(turns) if turns[-1].role == "user" else None


def shared_dialogue(first: str, second: str) -> tuple[tuple[Turn, ...], int] | None:
    """Return the turns that two dialogues begin with, up to the last answer, and their length.

    None where they do not begin with the same dialogue.
    """
    shared = commonprefix([first, second])  # noqa: RUF071  # characters are meant
    end = shared.rfind(ASSISTANT_TURN)
    while end >= 0:
        length = end + len(ASSISTANT_TURN)
        turns = parse_dialogue(shared[:length])
        if turns is not None:
            return turns, length
        end = shared.rfind(ASSISTANT_TURN, 0, end)
    return None


def prompt_turns(row: Mapping[str, Any]) -> tuple[Turn, ...] | None:
    """Return the turns of a row's `messages`, `conversations` or `prompt`; None without any.

    A prompt that repeats the user's in the messages adds nothing.
    """
    absent = (None, "")
    given = [name for name in ("messages", "conversations") if row.get(name) not in absent]
    prompt = row.get("prompt")
    if len(given) > 1:
        raise ValueError("both 'messages' and 'conversations' are there; expected one of them")
    if not given:
        return None if prompt is None else _turns_of_prompt(prompt)
    turns = parse_turns(row[given[0]], given[0])
    if turns is None:
        raise ValueError(f"'{given[0]}' is str, expected a list of messages")
    if prompt not in absent and not _repeats(turns, prompt):
        raise ValueError(f"'prompt' and '{given[0]}' are both there and differ; expected one")
    system = row.get("system") if given == ["conversations"] else None
    if isinstance(system, str) and system and turns[0].role != "system":
        turns = (Turn("system", system), *turns)
    return turns


def conversation(turns: Sequence[Turn]) -> Conversation:
    """Return turns as history, prompt and, if the assistant's is the last, its response."""
    remaining = list(turns)
    answer = remaining.pop().content if remaining and remaining[-1].role == "assistant" else None
    if not remaining or remaining[-1].role != "user":
        raise ValueError("a conversation without a user's message before its end")
    return Conversation(tuple(remaining[:-1]), remaining[-1].content, answer)


def question(turns: Sequence[Turn]) -> Conversation:
    """Return the conversation of turns that end with the user; ValueError otherwise."""
    parsed = conversation(turns)
    if parsed.response is not None:
        raise ValueError("the last message is the assistant's; expected the user's, to be answered")
    return parsed


def _turns_of_prompt(prompt: object) -> tuple[Turn, ...]:
    if isinstance(prompt, Mapping):
        raise ValueError(f"'prompt' is {type(prompt).__name__}, expected a string or messages")
    turns = parse_turns(prompt, "prompt")
    if turns is not None:
        return turns
    assert isinstance(prompt, str)
    return parse_dialogue(prompt) or (Turn("user", prompt),)


def _repeats(turns: Sequence[Turn], prompt: object) -> bool:
    if isinstance(prompt, str) and prompt in [turn.content for turn in turns]:
        return True
    own_turns = _turns_of_prompt(prompt)
    return tuple(turns[: len(own_turns)]) == own_turns


def _messages_in(text: str) -> list[Any] | None:
    """Return the messages of a JSON text; None where it has none."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = json_value(text)
    except ValueError:
        return None
    rows = [value] if isinstance(value, Mapping) else value
    if isinstance(rows, list) and rows and all(map(_is_message, rows)):
        return whole_characters(rows)
    return None


def _is_message(row: object) -> bool:
    keys = row.keys() if isinstance(row, Mapping) else set()
    return {"role", "content"} <= keys or {"from", "value"} <= keys


def _turn(message: object, name: str) -> Turn:
    if isinstance(message, Turn):
        return message
    if not isinstance(message, Mapping):
        raise ValueError(f"'{name}' holds {message!r:.60}, expected a role and a text")
    for call in _CALLS:
        if message.get(call):
            raise ValueError(f"'{name}' holds a message with '{call}', which is no text")
    ours = "role" in message or "content" in message
    role = message.get("role" if ours else "from")
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"'{name}' has the role {role!r}, expected system, user or assistant")
    return Turn(_ROLES[role], _content(message.get("content" if ours else "value"), name))


def _content(content: object, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        content_type = "null" if content is None else type(content).__name__
        raise ValueError(
            f"'{name}' holds a message whose content is {content_type}, expected a text"
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) and kind == "text" else None
        if not isinstance(text, str):
            raise ValueError(f"'{name}' holds a part of type {kind!r:.40}, expected text")
        texts.append(text)
    return "".join(texts)
