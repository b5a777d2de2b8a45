"""Conversations and texts become ids and texts again, by every template and kind of tokenizer."""

from collections import Counter
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from reward_models.conversations import Turn
from stages.data.template import (
    bos_ids,
    document_ids,
    end_id,
    prompt_ids,
    response_ids,
    response_text,
    stop_ids,
)
from tests.stages.data.chat_templates import BOS, CHATS, EOS, KINDS, build

CELLS = [(name, kind) for name in CHATS for kind in KINDS]
every_chat = pytest.mark.parametrize("name", CHATS)
every_cell = pytest.mark.parametrize(("name", "kind"), CELLS, ids=map("/".join, CELLS))
few = settings(max_examples=12, deadline=None, derandomize=True, database=None)

WORD = st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=12)
HARMLESS = ["hello", " the quick brown fox", "\n", "\n\n", "  ", "🙂", "é", "<", "|>", "?", "I'm"]
CONTROL = sorted(
    {*(t for chat in CHATS.values() for t in (*chat.markers, *chat.plain)), BOS, EOS, "<pad>"}
)


def texts(*parts: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(parts) | WORD, min_size=1, max_size=6).map("".join)


harmless = texts(*HARMLESS).filter(lambda text: not any(token in text for token in CONTROL))
forging = st.tuples(texts(*HARMLESS), st.sampled_from(CONTROL), texts(*HARMLESS, *CONTROL)).map(
    "".join
)


@cache
def tokenizer_of(name: str, kind: str = "byte_level") -> PreTrainedTokenizerFast:
    return build(CHATS[name], kind)


def by_transformers(
    tokenizer: PreTrainedTokenizerFast, turns: list[Turn], **more: Any
) -> list[int]:
    messages = [turn.to_json() for turn in turns]
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **more))


def control_ids(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> Counter[int]:
    """The count of each added token in the ids."""
    return Counter(i for i in ids if i in tokenizer.added_tokens_decoder)


@every_cell
@few
@given(text=forging | harmless)
def test_a_response_is_read_back_as_it_was_written_and_has_the_same_ids_again(
    name: str, kind: str, text: str
):
    tokenizer = tokenizer_of(name, kind)
    for ended in (True, False):
        ids = response_ids(tokenizer, text, ended=ended)
        assert response_text(tokenizer, ids) == text.strip()
        assert response_ids(tokenizer, response_text(tokenizer, ids), ended=ended) == ids


@every_cell
@few
@given(text=harmless.filter(str.strip))
def test_a_harmless_prompt_has_the_ids_that_transformers_gives_it(name: str, kind: str, text: str):
    tokenizer, chat = tokenizer_of(name, kind), CHATS[name]
    if chat.template is None or "strftime_now" in chat.template:
        return
    user = Turn("user", text)
    prompt = by_transformers(tokenizer, [user], add_generation_prompt=True)
    if chat.own:
        whole = by_transformers(tokenizer, [user, Turn("assistant", "hello")])
        prompt = whole[: len(prompt_ids(tokenizer, text))]
    assert prompt_ids(tokenizer, text) == prompt


@every_cell
@few
@given(text=forging)
def test_no_text_becomes_a_control_token(name: str, kind: str, text: str):
    tokenizer, chat = tokenizer_of(name, kind), CHATS[name]
    thinking = {tokenizer.convert_tokens_to_ids(token) for token in chat.plain if "think" in token}
    for role in ("user", "assistant", "system"):
        first = [Turn("user", "a")] if role == "assistant" else []
        for content in ("a", text):
            turns = [*first, Turn(role, content)]
            if role == "user":
                ids = prompt_ids(tokenizer, content)
            else:
                ids = prompt_ids(tokenizer, "a", history=turns)
            if content == "a":
                plain = control_ids(tokenizer, ids)
            elif role == "assistant":  # its own thoughts are tokens
                counts = control_ids(tokenizer, ids)
                assert {i: n for i, n in counts.items() if i not in thinking} == {
                    i: n for i, n in plain.items() if i not in thinking
                }
            else:
                assert control_ids(tokenizer, ids) == plain
    counts = control_ids(tokenizer, response_ids(tokenizer, text))
    assert {i: n for i, n in counts.items() if i not in thinking} == {end_id(tokenizer): 1}
    assert control_ids(tokenizer, document_ids(tokenizer, text)).keys() <= {
        *bos_ids(tokenizer),
        *thinking,
    }


@few
@given(text=forging)
def test_a_tokenizer_written_in_python_takes_no_text_for_a_control_token(text: str):
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    for template in (CHATS["chatml"].template, None):
        tokenizer.chat_template = template
        counts = [control_ids(tokenizer, prompt_ids(tokenizer, content)) for content in ("a", text)]
        assert counts[0] == counts[1]
        assert response_text(tokenizer, response_ids(tokenizer, text)) == text.strip()


def test_a_response_keeps_the_spaces_before_its_punctuation():
    tokenizer = build(CHATS["chatml"], "unigram")
    tokenizer.clean_up_tokenization_spaces = True
    assert response_text(tokenizer, response_ids(tokenizer, "I 'm here , you .")) == (
        "I 'm here , you ."
    )


@every_chat
def test_a_response_ends_as_its_template_ends_it(name: str):
    tokenizer = tokenizer_of(name)
    end = tokenizer.convert_tokens_to_ids(CHATS[name].end)
    assert response_ids(tokenizer, "hello")[-1] == end == end_id(tokenizer)
    others = {tokenizer.convert_tokens_to_ids(CHATS[name].earlier_end or EOS)}
    assert set(stop_ids(tokenizer)) == {end, tokenizer.eos_token_id, *others}
    response = response_ids(tokenizer, "hello")
    for stop in stop_ids(tokenizer):
        further = [*response[:-1], stop, *prompt_ids(tokenizer, "more")]
        assert response_text(tokenizer, further) == "hello"


@every_cell
def test_bos_stands_once_at_the_beginning_where_the_template_or_else_the_tokenizer_puts_it(
    name: str, kind: str
):
    tokenizer, chat = tokenizer_of(name, kind), CHATS[name]
    ids, bos = prompt_ids(tokenizer, "hello"), tokenizer.bos_token_id
    puts = chat.template is None or "bos_token" in chat.template
    assert ids.count(bos) == puts
    assert (ids[0] == bos) == puts
    assert document_ids(tokenizer, "hello") == tokenizer.encode("hello")
    assert bos not in response_ids(tokenizer, "hello")


@every_chat
def test_a_response_follows_its_prompt_as_the_template_writes_both(name: str):
    tokenizer, chat = tokenizer_of(name), CHATS[name]
    if chat.template is None:
        return
    prompt, response = prompt_ids(tokenizer, "hi"), response_ids(tokenizer, "fox", ended=False)
    opened = tokenizer.decode(prompt)
    assert opened.endswith(chat.own)
    if name != "deepseek":  # whose prompts open a thought, which its past answers have not
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "fox"}]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        decoded = tokenizer.decode([*prompt, *response])
        dated = "strftime_now" in chat.template
        assert dated or whole.startswith(decoded)


@every_chat
def test_a_conversation_goes_through_the_template_turn_by_turn(name: str):
    tokenizer, chat = tokenizer_of(name), CHATS[name]
    history = [Turn("system", "Be kind."), Turn("user", "hi"), Turn("assistant", "fox")]
    ids = prompt_ids(tokenizer, "dog", history=history)
    if chat.template is None:
        written = "Be kind.\n\nUser: hi\nAssistant: fox\nUser: dog\n"
        assert ids == tokenizer.encode(written)
    elif "strftime_now" not in chat.template:
        if not chat.takes_system:
            history = [Turn("user", "Be kind.\n\nhi"), Turn("assistant", "fox")]
        turns = [*history, Turn("user", "dog")]
        prompt = by_transformers(tokenizer, turns, add_generation_prompt=True)
        assert ids[: len(prompt)] == prompt
        assert tokenizer.decode(ids[len(prompt) :]) == chat.own


@pytest.mark.parametrize("name", ["llama-3", "gpt-oss"])
def test_a_prompt_has_the_same_ids_tomorrow(name: str, monkeypatch: pytest.MonkeyPatch):
    tokenizer = tokenizer_of(name)
    today = prompt_ids(tokenizer, "What day is it?")

    class Later(datetime):
        @classmethod
        def now(cls, *_: Any) -> "Later":
            return cls(2031, 5, 17)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    assert "2031" in tokenizer.decode(by_transformers(tokenizer, [Turn("user", "?")]))
    assert prompt_ids(build(CHATS[name]), "What day is it?") == today
    assert "2024" in tokenizer.decode(today)


def test_a_thought_is_tokens_where_the_tokenizer_can_write_it_and_else_text():
    for kind in KINDS:
        tokenizer = tokenizer_of("deepseek", kind)
        response = "I wonder.</think>hello"
        ids = response_ids(tokenizer, response)
        thought = tokenizer.convert_tokens_to_ids("</think>")
        assert ids.count(thought) == (kind != "sentencepiece")
        assert response_text(tokenizer, ids) == response
