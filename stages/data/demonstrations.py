"""Demonstrations, prompts and pretraining texts from files and from the hub, in the usual formats.

A source is a file of JSON lines (`.jsonl`; texts also `.txt`) or `hf:NAME`, a data set of the hub
or a folder that the datasets library can read (see `stages/data/hub_data.py`); texts also come from
a folder of such files. A row may be

    {"prompt": "...", "response": "..."}                          ours; more keys are kept
    {"prompt": "...", "completion": "..."}                        TRL's prompt-completion
    {"prompt": [messages], "completion": [messages]}              the same, conversational
    {"messages": [{"role": "user", "content": "..."}, ...]}       TRL's conversations
    {"instruction": "...", "input": "...", "output": "..."}       Alpaca's
    {"instruction": "...", "instances": [{"input", "output"}]}    Self-Instruct's

A system message becomes the context. Of a longer conversation the last answer is the response and
what went before is written out in the prompt, as in the paper's chat prompts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from reward_models.records import Demonstration, Prompt, read_jsonl
from stages.config_base import HUB
from stages.data.hub_data import hub_rows

R = TypeVar("R")
Row = Mapping[str, Any]


def load_demonstrations(source: str) -> list[Demonstration]:
    """All demonstrations of a source; ValueError `file:line: ...` at the first row that is none."""
    return _load(source, _demonstrations, "demonstration")


def load_prompts(source: str) -> list[Prompt]:
    """Every prompt of a source; rows with a response give their prompt."""
    return _load(source, _prompts, "prompt")


def pretraining_texts(source: str) -> Iterator[str]:
    """The texts of a source one by one, so that it may be larger than memory.

    Rows {"text"}; in a `.txt` file, what blank lines separate; of a folder, all such files in it in
    the order of their names. ValueError `file:line: ...` at the first row that is none, and where
    there is no text at all.
    """
    found = False
    for text in _texts_of(source):
        found = True
        yield text
    if not found:
        raise ValueError(f"{source}: no text in it")


def load_pretraining_texts(source: str) -> list[str]:
    """All of them in a list."""
    return list(pretraining_texts(source))


def _texts_of(source: str) -> Iterator[str]:
    path = Path(source)
    if not source.startswith(HUB) and path.is_dir():
        for inside in sorted(path.iterdir()):
            if inside.suffix in (".txt", ".jsonl"):
                yield from _texts_of(str(inside))
    elif not source.startswith(HUB) and path.suffix == ".txt":
        if not path.is_file():
            raise ValueError(f"{source}: no such file")
        yield from _blocks(path)
    else:
        for where, row in source_rows(source):
            try:
                yield _text(row)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None


def _blocks(path: Path) -> Iterator[str]:
    """What blank lines separate."""
    block: list[str] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                block.append(line)
            elif block:
                yield "".join(block).strip()
                block = []
    if block:
        yield "".join(block).strip()


def _load(source: str, read: Callable[[Row], list[R]], what: str) -> list[R]:
    found: list[R] = []
    for where, row in source_rows(source):
        try:
            found += read(row)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from None
    if not found:
        raise ValueError(f"{source}: no {what} in it")
    return found


def source_rows(source: str) -> Iterator[tuple[str, Row]]:
    """Each row of a file or of the hub, with where it stands."""
    if source.startswith(HUB):
        yield from hub_rows(source)
        return
    yield from ((f"{source}:{number}", row) for number, row in read_jsonl(Path(source)))


def _demonstrations(row: Row) -> list[Demonstration]:
    if "response" in row and isinstance(row.get("prompt"), str):
        return [Demonstration.from_json(row)]
    if "instances" in row:
        return [Demonstration.from_json(one) for one in _instances(row)]
    plain = _plain(row)
    if "response" not in plain:
        raise ValueError(f"no response; expected one of the known formats, found {sorted(row)}")
    return [Demonstration.from_json(plain)]


def _prompts(row: Row) -> list[Prompt]:
    if "instances" in row:
        plain = _instances(row)
    elif isinstance(row.get("prompt"), str):
        plain = [dict(row)]
    else:
        plain = [_plain(row)]
    kept = [{k: v for k, v in one.items() if k not in ("response", "completion")} for one in plain]
    return [Prompt.from_json(one) for one in kept]


def _text(row: Row) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"expected a key 'text' with a text in it, found {sorted(row)}")
    return text


def _plain(row: Row) -> dict[str, Any]:
    """A row of another format under this project's names."""
    known = ("prompt", "completion", "messages", "instruction", "input", "output")
    rest = {name: value for name, value in row.items() if name not in known and value is not None}
    if "messages" in row:
        return {**rest, **_conversation(_messages(row, "messages"))}
    if "instruction" in row:
        said = _instruction(row["instruction"], row.get("input"))
        return {**rest, "prompt": said} | ({"response": row["output"]} if "output" in row else {})
    if isinstance(row.get("prompt"), list):
        answer = _messages(row, "completion") if "completion" in row else []
        return {**rest, **_conversation([*_messages(row, "prompt"), *answer])}
    if "prompt" in row and "completion" in row:
        return {**rest, "prompt": row["prompt"], "response": row["completion"]}
    raise ValueError(f"none of the known formats; found {sorted(row)}")


def _instances(row: Row) -> list[dict[str, Any]]:
    """Self-Instruct: one instruction with several inputs and outputs."""
    rows = []
    for number, instance in enumerate(row["instances"]):
        said = {"prompt": _instruction(row["instruction"], instance.get("input"))}
        where = {"id": f"{row['id']}/{number}"} if "id" in row else {}
        kind = {"category": "classify"} if row.get("is_classification") else {}
        rows.append({**said, "response": instance["output"], **where, **kind})
    return rows


def _instruction(instruction: object, given: object) -> str:
    if not isinstance(instruction, str):
        raise ValueError(f"'instruction' is {type(instruction).__name__}, expected a string")
    return f"{instruction}\n\n{given}" if given else instruction


def _messages(row: Row, name: str) -> list[tuple[str, str]]:
    messages = row[name]
    if not isinstance(messages, list):
        raise ValueError(f"'{name}' is {type(messages).__name__}, expected a list of messages")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ValueError(f"'{name}' holds {message!r}, expected a role and a text")
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(
                f"'{name}' has the role {message.get('role')!r}, expected system, user or assistant"
            )
    return [(message["role"], message["content"]) for message in messages]


def _conversation(messages: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Context from the system, response from a last assistant, prompt from all in between."""
    system = [text for role, text in messages if role == "system"]
    turns = [(role, text) for role, text in messages if role != "system"]
    answer = turns.pop()[1] if turns and turns[-1][0] == "assistant" else None
    if not turns or turns[-1][0] != "user":
        raise ValueError("a conversation without a user's message before its end")
    names = {"user": "User", "assistant": "Assistant"}
    written = [f"{names[role]}: {text}" for role, text in turns]
    prompt = turns[0][1] if len(turns) == 1 else "\n".join(written)
    plain: dict[str, Any] = {"prompt": prompt}
    if system:
        plain["context"] = "\n\n".join(system)
    return plain if answer is None else {**plain, "response": answer}
