"""Conversations of any accepted format as turns: who said what, in order.

    [{"role": "user", "content": "..."}, ...]       messages, as chat templates take them
    [{"from": "human", "value": "..."}, ...]        ShareGPT's
    "\\n\\nHuman: ...\\n\\nAssistant: ..."              Anthropic's dialogues
    "[{\\"role\\": ...}]"                             messages as JSON text, as tables hold them

A content is a text or a list of parts of type text. What is no text (tool calls, images, null) is
refused, because it would be learnt as something else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """The turns before the last user's, the text of that one, and the answer where there is one."""

    history: tuple[Turn, ...]
    prompt: str
    response: str | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns up to where the answer begins."""
        return (*self.history, Turn("user", self.prompt))


def parse_turns(value: object, name: str) -> tuple[Turn, ...] | None:
    """The turns of messages; None of a plain text. ValueError names what else the value is."""
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
    """The turns of a text "Human: ... Assistant:" that waits for an answer; None of other texts.

    What one speaker says in several pieces is one turn.
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


def prompt_turns(row: Mapping[str, Any]) -> tuple[Turn, ...] | None:
    """The turns that a row's `messages`, `conversations` or `prompt` hold; None without any.

    A prompt that repeats what the user says in the messages adds nothing.
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
    """Turns as what is to be answered and, where the assistant's is the last, its answer."""
    remaining = list(turns)
    answer = remaining.pop().content if remaining and remaining[-1].role == "assistant" else None
    if not remaining or remaining[-1].role != "user":
        raise ValueError("a conversation without a user's message before its end")
    return Conversation(tuple(remaining[:-1]), remaining[-1].content, answer)


def question(turns: Sequence[Turn]) -> Conversation:
    """Turns that end with the user, who is to be answered; ValueError otherwise."""
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
    """The messages that a JSON text holds; None where it holds none."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = json_value(text)
    except ValueError:
        return None
    rows = [value] if isinstance(value, Mapping) else value
    are_messages = isinstance(rows, list) and bool(rows) and all(
        isinstance(row, Mapping) and ({"role", "content"} <= row.keys()
                                      or {"from", "value"} <= row.keys())
        for row in rows
    )  # fmt: skip
    return whole_characters(rows) if are_messages else None


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
