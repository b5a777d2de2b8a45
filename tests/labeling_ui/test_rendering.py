"""What a model wrote can be read, and can do nothing."""

import html
import re

import pytest

from labeling_ui.rendering import plain_html, safe_html, snippet
from tests.browser.hostile import HOSTILE

ALIVE = re.compile(
    r"<(?!/?(?:p|br|hr|em|strong|s|code|pre|blockquote|[uo]l|li|h\d|table|thead|"
    r"tbody|t[rhd]|a|span)\b)[a-z!/]",
    re.IGNORECASE,
)


@pytest.mark.parametrize("text", HOSTILE)
def test_only_harmless_elements_are_left(text: str) -> None:
    for made in (safe_html(text), plain_html(text)):
        assert not ALIVE.search(made)
        assert not re.search(r"<[^>]*\s(on\w+|style|src|action|formaction)\s*=", made)
        assert not re.search(r'<a [^>]*href="(?!https?:|mailto:)', made)


@pytest.mark.parametrize("text", HOSTILE)
def test_the_plain_text_is_the_text_itself(text: str) -> None:
    bare = html.unescape(re.sub(r"</?span[^>]*>", "", plain_html(text)))
    assert bare == text.replace("\x00", "\ufffd")


def test_markdown_tables_and_code_are_formatted() -> None:
    made = safe_html("**a** | `b`\n\n|x|y|\n|-|-|\n|1|2|\n\n```python\ndef f(): ...\n```")
    for part in ("<strong>a</strong>", "<code>b</code>", "<td>1</td>", 'class="hl-k">def</span>'):
        assert part in made


def test_characters_that_turn_the_writing_are_named() -> None:
    assert 'title="U+202E"' in safe_html("a\u202eb")
    assert "\u202e" not in snippet("a\u202eb")


def test_backslashes_and_templates_stay_as_they_are() -> None:
    assert "\\frac{a}{b} ${5} {{x}}" in safe_html("\\frac{a}{b} ${5} {{x}}")
