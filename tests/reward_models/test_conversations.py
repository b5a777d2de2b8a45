"""One conversation is one prompt, through every format in which anybody writes it."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling_ui.formats.files import read_labels
from pipeline.evaluation.external.sample_files import open_samples
from reward_models.conversations import Turn, parse_dialogue, parse_turns
from reward_models.records import Demonstration, Prompt, RankingTask
from stages.data.demonstrations import load_demonstrations, load_prompts
from stages.data.preferences import load_pairs

Parsed = tuple[tuple[Turn, ...], str | None, str]  # history, context, prompt
Messages = list[dict[str, Any]]
GOOD, BAD = "a good answer", "a bad answer"


def parsed(record: Any) -> Parsed:
    return record.history, record.context, record.prompt


def messages(turns: list[tuple[str, str]]) -> Messages:
    return [{"role": role, "content": text} for role, text in turns]


def answer(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


def sharegpt(turns: Messages) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


def in_parts(turns: Messages) -> Messages:
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


def as_dialogue(turns: Messages) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)


def prompt_forms(turns: Messages) -> dict[str, dict[str, Any]]:
    """The same thing asked, as keys of a row."""
    forms: dict[str, dict[str, Any]] = {
        "messages": {"messages": turns},
        "messages as the prompt": {"prompt": turns},
        "messages as text": {"prompt": json.dumps(turns)},
        "parts": {"prompt": in_parts(turns)},
        "sharegpt": {"conversations": sharegpt(turns)},
        "prompt beside messages": {"prompt": turns[-1]["content"], "messages": turns},
    }
    if len(turns) == 1:
        forms["text"] = {"prompt": turns[0]["content"]}
    if turns[0]["role"] != "system":
        forms["dialogue"] = {"prompt": f"{as_dialogue(turns)}\n\nAssistant:"}
    elif len(turns) > 1:
        rest = sharegpt(turns[1:])
        forms["system apart"] = {"conversations": rest, "system": turns[0]["content"]}
    return forms


def pair_forms(turns: Messages) -> dict[str, dict[str, Any]]:
    texts = {"chosen": GOOD, "rejected": BAD}
    spoken = {name: answer(text) for name, text in texts.items()}
    whole = {name: [*turns, *answer] for name, answer in spoken.items()}
    forms: dict[str, dict[str, Any]] = {
        "implicit": whole,
        "text beside whole": {"prompt": turns[-1]["content"], **whole},
        "repeated": {"prompt": turns, **whole},
        "sharegpt": {
            "conversations": sharegpt(turns),
            "chosen": sharegpt(spoken["chosen"])[0],
            "rejected": sharegpt(spoken["rejected"])[0],
        },
    }
    for name, form in prompt_forms(turns).items():
        if "prompt" in form and "messages" not in form:
            forms[f"{name}, texts"] = {**form, **texts}
            forms[f"{name}, messages"] = {**form, **spoken}
    if turns[0]["role"] != "system":
        dialogue = as_dialogue(turns)
        forms["anthropic"] = {n: f"{dialogue}\n\nAssistant: {text}" for n, text in texts.items()}
    if len(turns) > 2 and turns[-2]["role"] == "assistant":
        later = {name: [*turns[-2:], *answer] for name, answer in spoken.items()}
        forms["several turns"] = {"prompt": turns[:-2], **later}
    return forms


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as out:
            table = csv.DictWriter(out, rows[0])
            table.writeheader()
            cells = (
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                for row in rows
            )
            table.writerows(cells)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def readings(folder: Path, turns: Messages, context: str | None, ending: str) -> dict[str, Parsed]:
    """The result of every reader for the conversation in every form."""
    about = {} if context is None else {"context": context}
    number = 0
    made: dict[str, Any] = {}

    def path_of(row: dict[str, Any]) -> Path:
        nonlocal number
        number += 1
        return write(folder, f"{number}{ending}", [{**row, **about}])

    for name, form in prompt_forms(turns).items():
        made[f"prompt: {name}"] = load_prompts(str(path_of(form)))[0]
        for key in ("response", "completion"):
            row = {**form, key: GOOD}
            made[f"{key}: {name}"] = load_demonstrations(str(path_of(row)))[0]
        pair = [{"id": "a", "text": GOOD}, {"id": "b", "text": BAD}]
        task = path_of({"id": "t", **form, "responses": pair})
        made[f"task: {name}"] = read_labels(task, "jsonl")[0][0]
        sample = {"id": "s", "model": "m", "suite": "x", **form, "completion": GOOD}
        if "conversations" not in form:
            made[f"sample: {name}"] = next(open_samples([path_of(sample)], {}).rows())
    whole = [*turns, *answer(GOOD)]
    for key, row in (("messages", whole), ("conversations", sharegpt(whole))):
        made[f"answered {key}"] = load_demonstrations(str(path_of({key: row})))[0]
        made[f"asked in {key}"] = load_prompts(str(path_of({key: row})))[0]
    for name, form in pair_forms(turns).items():
        made[f"pair: {name}"] = load_pairs(path_of(form))[0][0]
    for record in list(made.values()):
        if isinstance(record, Prompt | Demonstration | RankingTask):
            made[f"again: {len(made)}"] = type(record).from_json(record.to_json())
    assert {one.response for one in made.values() if isinstance(one, Demonstration)} == {GOOD}
    return {name: parsed(record) for name, record in made.items()}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
WORDS = TEXT.map(str.strip).filter(
    lambda text: text and not text.startswith(("[", "{")) and "Human:" not in text
)


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    turns = [("user", draw(WORDS))]
    for _ in range(draw(st.integers(0, 2))):
        turns = [("user", draw(WORDS)), ("assistant", draw(WORDS)), *turns]
    if draw(st.booleans()):
        turns = [("system", draw(WORDS)), *turns]
    return messages(turns)


@settings(max_examples=30, deadline=None)
@given(
    turns=conversations(),
    context=st.none() | WORDS,
    ending=st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]),
)
def test_one_conversation_is_one_prompt_through_every_format(
    tmp_path_factory: pytest.TempPathFactory, turns: Messages, context: str | None, ending: str
) -> None:
    parsed_by_format = readings(tmp_path_factory.mktemp("c"), turns, context, ending)
    history = tuple(Turn(turn["role"], turn["content"]) for turn in turns[:-1])
    expected = (history, context, turns[-1]["content"])
    assert {name: row for name, row in parsed_by_format.items() if row != expected} == {}


@pytest.mark.parametrize("context", ["", "  \n", None])
def test_an_empty_context_is_none(tmp_path: Path, context: str | None) -> None:
    row = {"instruction": "2+2?", "context": context, "response": "4", "category": "closed_qa"}
    (loaded,) = load_demonstrations(str(write(tmp_path, "d.jsonl", [row])))
    assert (loaded.context, loaded.prompt) == (None, "2+2?")


@pytest.mark.parametrize("context", [["one", "two"], {"a": 1}, 3, True])
def test_a_context_that_is_no_text_is_refused(tmp_path: Path, context: object) -> None:
    path = write(tmp_path, "q.jsonl", [{"prompt": "a"}, {"prompt": "2+2?", "context": context}])
    with pytest.raises(ValueError, match=r"q\.jsonl:2: 'context' is .*expected a string"):
        load_prompts(str(path))


def test_what_one_speaker_says_in_pieces_is_one_turn() -> None:
    text = "Human: a\n\nAssistant: b:\n\nAssistant:  c\n\nHuman: d\n\nAssistant:"
    assert parse_dialogue(text) == (
        Turn("user", "a"),
        Turn("assistant", "b:\n\nc"),
        Turn("user", "d"),
    )


@pytest.mark.parametrize(
    "text", ["Human: a", "a\n\nAssistant:", "Human: a\n\nAssistant: b", "", "\n"]
)
def test_other_texts_are_no_dialogues(text: str) -> None:
    assert parse_dialogue(text) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "x"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(value=JSON)
def test_any_value_is_turns_a_text_or_refused(value: object) -> None:
    try:
        turns = parse_turns(value, "prompt")
    except ValueError as error:
        assert "'prompt'" in str(error)  # noqa: PT017
    else:
        assert isinstance(value, str) if turns is None else turns
