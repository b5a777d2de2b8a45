"""Marks on the words in which two outputs differ: complete, only there, and never in the way."""

import re
from html import unescape
from itertools import combinations

import pytest

from labeling_ui.differences import WORD, marked_html, marked_plain
from labeling_ui.rendering import plain_html, safe_html
from tests.browser.examples import TEXTS
from tests.browser.hostile import HOSTILE

MARK = re.compile(r"</?mark[^>]*>")
CODE = "It is:\n\n```python\nfor x in values:\n    print(x, 'one')\n```"
TABLE = "| What | When |\n|---|---|\n| built | 1874 |"
PAIRS = [
    *combinations(TEXTS, 2),
    *combinations((CODE, TABLE, f"{TABLE}\n\n{CODE}"), 2),
    *((text, f"{text} and more") for text in HOSTILE),
    *((f"**{text}** is said here, and here", f"{text} is heard here") for text in HOSTILE),
]


def marks(text: str) -> list[str]:
    """Return the marked words, tags inside them left out."""
    inside = re.findall(r"<mark[^>]*>(.*?)</mark>", text)
    return [re.sub("<[^>]*>", "", one) for one in inside]


def without_marks(text: str) -> list[str]:
    """Return the words outside marks."""
    outside = re.sub(r"<mark[^>]*>.*?</mark>", "", text, flags=re.DOTALL)
    return WORD.findall(re.sub("<[^>]*>", "", outside))


def test_but_for_the_marks_the_texts_are_as_they_are_without_them() -> None:
    for a, b in PAIRS:
        html, plain = marked_html(a, b), marked_plain(a, b)
        assert [MARK.sub("", text) for text in html.texts] == [safe_html(a), safe_html(b)]
        texts = [unescape(MARK.sub("", text)) for text in plain.texts]
        assert texts == [unescape(plain_html(a)), unescape(plain_html(b))]


def test_what_is_not_marked_is_alike_on_both_sides() -> None:
    num_marked = 0
    for a, b in PAIRS:
        marked = marked_html(a, b)
        if marked.num_changes is not None:
            first, second = marked.texts
            num_marked += marked.num_changes
            assert without_marks(first) == without_marks(second)
    assert num_marked > 50


@pytest.mark.parametrize(
    ("a", "b", "differ"),
    [
        ("the cat sat on the mat", "the cat sat on the hat", ("mat", "hat")),
        ("It is **so** good, he said", "It is **so** good; he said", (",", ";")),
        (CODE, CODE.replace("one", "0ne"), ("one", "0ne")),
        (TABLE, TABLE.replace("1874", "1875"), ("1874", "1875")),
        ("The sum is $a + b$ here now", "The sum is $a - b$ here now", ("a+b", "a\u2212b")),
        ("他在一八七四年建造了灯塔", "他在一八七五年建造了灯塔", ("四", "五")),
        ("on the caf\u00e9 e\u0301 sign", "on the caf\u00e9 e sign", ("e\u0301", "e")),
        ("We like it a lot 👩‍👩‍👧 here", "We like it a lot 👩‍👩‍👦 here", ("👩‍👩‍👧", "👩‍👩‍👦")),
    ],
)
def test_one_change_is_marked_on_both_sides_and_nothing_else(
    a: str, b: str, differ: tuple[str, str]
) -> None:
    marked = marked_html(a, b)
    assert marked.num_changes == 1
    assert tuple("".join(marks(text)).strip() for text in marked.texts) == differ


def test_where_words_lack_a_mark_shows_their_position() -> None:
    first, second = marked_html("Group to Vietnam.", "Group (MAAG) to Vietnam.").texts
    assert 'Group<mark data-change="0" class="lacks"></mark> to' in first
    assert '<mark data-change="0">(MAAG)</mark>' in second


def test_white_space_counts_in_plain_text_only() -> None:
    assert marked_html("one two\nthree", "one two \nthree").num_changes == 0
    assert marked_plain("one two three", "one  two three").num_changes == 1
    assert marked_plain("one two three", "one two\nthree").num_changes == 1


def test_texts_with_hardly_a_word_in_common_are_not_marked() -> None:
    marked = marked_html("Lighthouses are towers with lamps.", "Why would you even ask that?")
    assert marked.num_changes is None
    assert not any("<mark" in text for text in marked.texts)
