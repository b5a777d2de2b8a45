"""Demonstrations, prompts and pretraining texts from files and from the hub, in the usual formats.

A source is a file (JSON lines, JSON, CSV, TSV or Parquet, see reward_models/row_files.py; texts
also `.txt`) or `hf:NAME`, a data set of the hub or a folder that the datasets library can read (see
`stages/data/hub_data.py`); texts also come from a folder of such files. A row may be

    {"prompt": "...", "response": "..."}                          ours; more keys are kept
    {"prompt": "...", "completion": "..."}                        TRL's prompt-completion
    {"prompt": [messages], "completion": [messages]}              the same, conversational
    {"messages": [{"role": "user", "content": "..."}, ...]}       TRL's conversations
    {"conversations": [{"from": "human", "value": "..."}, ...]}   ShareGPT's
    {"instruction": "...", "input": "...", "output": "..."}       Alpaca's
    {"instruction": "...", "instances": [{"input", "output"}]}    Self-Instruct's

A preference pair (see stages/data/preferences.py) gives its prompt. A prompt may be one of
Anthropic's dialogues. The last answer of a conversation is the response, the user's words before it
are the prompt, and all turns before that, the system's included, are its history (see
reward_models/conversations.py).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from reward_models.conversations import (
    Turn,
    conversation,
    parse_dialogue,
    parse_turns,
    prompt_turns,
    shared_dialogue,
)
from reward_models.records import Demonstration, Prompt
from reward_models.row_files import ENDINGS, ending, read_rows, text_lines
from stages.config import HUB
from stages.data.hub_data import hub_rows

R = TypeVar("R")
Row = Mapping[str, Any]


def load_demonstrations(source: str) -> list[Demonstration]:
    """Return all demonstrations of a source; ValueError `file:line: ...` at a row that is none."""
    return _load(source, _demonstrations, "demonstration")


def load_prompts(source: str) -> list[Prompt]:
    """Return every prompt of a source; rows with a response give their prompt."""
    return _load(source, _prompts, "prompt")


def pretraining_texts(source: str) -> Iterator[str]:
    """Yield the texts of a source one by one, so that it may be larger than memory.

    Rows {"text"}; in a `.txt` file, paragraphs between blank lines; of a folder, all files in it
    with such endings, in the order of their names. ValueError `file:line: ...` at the first row
    that is none, and where there is no text at all.
    """
    is_empty = True
    for text in _texts_of(source):
        is_empty = False
        yield text
    if is_empty:
        raise ValueError(f"{source}: no text in it")


def _texts_of(source: str) -> Iterator[str]:
    path = Path(source)
    if not source.startswith(HUB) and path.is_dir():
        for inside in sorted(path.iterdir()):
            if ending(inside) in (".txt", *ENDINGS):
                yield from _texts_of(str(inside))
    elif not source.startswith(HUB) and ending(path) == ".txt":
        yield from _blocks(path)
    else:
        for where, row in source_rows(source):
            with located(where):
                text = _text(row)
            yield text


def _blocks(path: Path) -> Iterator[str]:
    """Yield the paragraphs between blank lines."""
    block: list[str] = []
    for _, line in text_lines(path):
        if line.strip():
            block.append(line)
        elif block:
            yield "".join(block).strip()
            block = []
    if block:
        yield "".join(block).strip()


def _load(source: str, parse: Callable[[Row], list[R]], what: str) -> list[R]:
    records: list[R] = []
    for where, row in source_rows(source):
        with located(where):
            records += parse(row)
    if not records:
        raise ValueError(f"{source}: no {what} in it")
    return records


def source_rows(source: str) -> Iterator[tuple[str, Row]]:
    """Yield each row of a file or of the hub, after its location."""
    if source.startswith(HUB):
        yield from hub_rows(source)
    else:
        yield from read_rows(Path(source))


@contextmanager
def located(where: str) -> Iterator[None]:
    """Turn the errors of a row that is not as expected into a ValueError that says where it is."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{where}: key {error} is missing") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _demonstrations(row: Row) -> list[Demonstration]:
    demonstrations = []
    for one in _instances(row):
        plain = _plain(one)
        if "response" not in plain:
            raise ValueError(f"no response; expected one of the known formats, found {sorted(one)}")
        demonstrations.append(Demonstration.from_json(plain))
    return demonstrations


def _prompts(row: Row) -> list[Prompt]:
    prompts = []
    for one in _instances(_question_of_pair(row)):
        plain = _plain(one)
        plain.pop("response", None)
        prompts.append(Prompt.from_json(plain))
    return prompts


def _question_of_pair(row: Row) -> Row:
    """Return a preference pair's row with its prompt alone; another row as it is."""
    if not {"chosen", "rejected"} <= row.keys():
        return row
    rest = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
    if any(rest.get(name) not in (None, "") for name in ("prompt", "messages", "conversations")):
        return rest
    chosen = parse_turns(row["chosen"], "chosen")
    if chosen is not None:
        return {**rest, "messages": chosen[:-1]}
    shared = shared_dialogue(str(row["chosen"]), str(row["rejected"]))
    if shared is None:
        raise ValueError("no 'prompt', and 'chosen' and 'rejected' do not begin with one dialogue")
    return {**rest, "messages": shared[0]}


def _text(row: Row) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"expected a key 'text' with a text in it, found {sorted(row)}")
    return text


def _plain(row: Row) -> dict[str, Any]:
    """Return a row of any format under this project's names, the prompt as `messages`."""
    known = ("prompt", "completion", "response", "messages", "conversations")
    rest = {name: value for name, value in row.items() if name not in known and value is not None}
    turns = prompt_turns(row)
    if turns is None:
        if row.get("instruction") is None:
            raise ValueError(f"none of the known formats; found {sorted(row)}")
        for name in ("instruction", "input", "output"):
            rest.pop(name, None)
        turns = (Turn("user", _instruction(row["instruction"], row.get("input"))),)
    answers = {name: row[name] for name in ("response", "completion") if row.get(name) is not None}
    if row.get("prompt") is None and row.get("output") is not None and "instruction" in row:
        answers["output"] = row["output"]
    if len(answers) > 1:
        raise ValueError(f"{' and '.join(map(repr, answers))} are both there; expected one of them")
    for name, answer in answers.items():
        turns = (*turns, *_answer(answer, name, row.get("prompt")))
    parsed = conversation(turns)
    plain = {**rest, "messages": [*parsed.turns]}
    return plain if parsed.response is None else {**plain, "response": parsed.response}


def _answer(answer: object, name: str, prompt: object) -> tuple[Turn, ...]:
    """Return the turns of an answer; in a dialogue, without the space before it."""
    turns = parse_turns(answer, name)
    if turns is None:
        assert isinstance(answer, str)
        in_dialogue = isinstance(prompt, str) and parse_dialogue(prompt) is not None
        turns = (Turn("assistant", answer.strip() if in_dialogue else answer),)
    if turns[-1].role != "assistant":
        raise ValueError(
            f"'{name}' ends with the {turns[-1].role}'s turn, expected the assistant's"
        )
    return turns


def _instances(row: Row) -> list[Row]:
    """Return the rows of a row: Self-Instruct has an instruction with several inputs."""
    if "instances" not in row:
        return [row]
    if not isinstance(row["instances"], list) or not row["instances"]:
        raise ValueError(f"'instances' is {row['instances']!r:.40}, expected a list of them")
    rows: list[Row] = []
    for number, instance in enumerate(row["instances"]):
        if not isinstance(instance, Mapping) or "output" not in instance:
            raise ValueError(f"instance {number} has no 'output'; found {instance!r:.40}")
        where = {"id": f"{row['id']}/{number}"} if row.get("id") is not None else {}
        kind = {"category": "classify"} if row.get("is_classification") else {}
        prompt = {"instruction": row.get("instruction"), "input": instance.get("input")}
        rows.append({**prompt, "output": instance["output"], **where, **kind})
    return rows


def _instruction(instruction: object, given: object) -> str:
    for name, value in (("instruction", instruction), ("input", given)):
        if not isinstance(value, str) and not (name == "input" and value is None):
            raise ValueError(f"'{name}' is {type(value).__name__}, expected a string")
    return f"{instruction}\n\n{given}" if given else str(instruction)
