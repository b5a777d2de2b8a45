"""A model's text can be read, and can do nothing."""

import html
import random
import re

import pytest

from labeling_ui.rendering import FORMULA_TAGS, plain_html, safe_html, snippet
from tests.browser.hostile import HOSTILE

ALIVE = re.compile(
    r"<(?!/?(?:p|br|hr|em|strong|s|code|pre|blockquote|[uo]l|li|h\d|table|thead|"
    rf"tbody|t[rhd]|a|span|{'|'.join(FORMULA_TAGS)})\b)[a-z!/]",
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


def test_formulas_become_mathml_and_prices_stay_prices() -> None:
    made = safe_html("It is $\\frac{a}{b}$, for $5 and $10; $$x^2$$ and \\(y\\).")
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in made
    assert "for $5 and $10" in made
    assert made.count("<math") == 3


@pytest.mark.parametrize(
    "tex", ["\\frac", "{" * 1500, "x^{" * 500, "\\def\\a{\\a\\a}\\a", "y" * 5000]
)
def test_what_is_no_formula_stays_the_text_it_was(tex: str) -> None:
    assert html.escape(f"${tex}$") in safe_html(f"${tex}$")


def test_no_text_in_a_formula_breaks_the_page() -> None:
    rng = random.Random(0)
    commands = r"\frac \text \href \left \begin{matrix} \sqrt["
    parts = [*"{}^_&\\<>\"'$ x1", *commands.split()]
    for _ in range(2000):
        tex = "".join(rng.choices(parts, k=12))
        assert not ALIVE.search(safe_html(f"$${tex}$$"))
