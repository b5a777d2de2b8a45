"""Markdown and TeX of unknown origin as HTML that can run nothing and load nothing.

Two walls: markdown-it escapes HTML and has no images; nh3 then keeps only the elements listed
here. Characters that turn the direction of writing are named and isolated, so that text cannot
pretend to be other text; they stay in place, and the text can be read back whole.

Formulas become MathML on the server: the browser needs no script and no font for them. What cannot
be read as a formula, or is too long or too deep to be one, stays the text it was.
"""

import html
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import ParseError, tostring

import nh3
from latex2mathml import exceptions as tex_errors
from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

FORMULA_TAGS = {
    *("math", "mrow", "mi", "mo", "mn", "mtext", "mspace", "ms", "mfrac", "msqrt", "mroot"),
    *("msup", "msub", "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd"),
    *("mstyle", "mpadded", "menclose", "mphantom"),
}
TAGS = FORMULA_TAGS | {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "a", "span"),
}
ATTRIBUTES = {
    "a": {"href"},
    "ol": {"start"},
    "span": {"class", "title"},
    "code": {"class"},
    "math": {"display"},
    "mo": {"stretchy", "fence", "form", "lspace", "rspace", "minsize", "maxsize"},
    "mi": {"mathvariant"},
    "mfrac": {"linethickness"},
    "mspace": {"width"},
    "mtable": {"columnalign"},
    "menclose": {"notation"},
}
# Embeddings, overrides, isolates and marks of Unicode's bidirectional algorithm (UAX 9).
TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
FORMULA_CHARACTERS = 2000
# The converter raises errors of its own, without a common base, and over texts that are no TeX it
# stumbles with Python's.
NO_FORMULA: tuple[type[Exception], ...] = (
    *(error for error in vars(tex_errors).values() if isinstance(error, type)),
    *(RecursionError, ValueError, KeyError, IndexError, StopIteration, TypeError, AttributeError),
    *(ParseError, AssertionError, OverflowError),
)
_COLOURS = HtmlFormatter(nowrap=True, classprefix="hl-")


@lru_cache(2048)
def safe_html(text: str) -> str:
    """Render Markdown (CommonMark, tables, strikethrough, coloured code, formulas) as HTML."""
    return cleaned(_name_turning(_markdown().render(_valid_in_html(text))))


def cleaned(rendered: str, *, marks: bool = False) -> str:
    """Keep of some HTML only the elements listed here; with `marks`, marked words as well."""
    return nh3.clean(
        rendered,
        tags=TAGS | {"mark"} if marks else TAGS,
        attributes=ATTRIBUTES | {"mark": {"class", "data-change"}} if marks else ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


@lru_cache(2048)
def plain_html(text: str) -> str:
    """Return the text itself as HTML: its `textContent` is the text, character by character.

    Only what HTML cannot hold (NUL, half a surrogate pair) becomes the replacement mark.
    """
    return _name_turning(html.escape(_valid_in_html(text)))


def snippet(text: str, characters: int = 90) -> str:
    """Return the first words of a text on one line, turning characters left out."""
    return " ".join(TURNING.sub("", _valid_in_html(text)).split())[:characters]


@lru_cache(1)
def _markdown() -> MarkdownIt:
    options = {"html": False, "linkify": False, "breaks": True, "highlight": _coloured}
    markdown = MarkdownIt("commonmark", options)
    markdown.enable(["table", "strikethrough"]).disable(["image"])
    dollarmath_plugin(markdown, allow_labels=False, allow_space=False, allow_digits=False)
    texmath_plugin(markdown, delimiters="brackets")
    for name, block in (("math_inline", False), ("math_inline_double", True), ("math_block", True)):
        markdown.add_render_rule(name, _formula_rule(block=block))
    return markdown


def _valid_in_html(text: str) -> str:
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def _coloured(code: str, language: str, _: str) -> str:
    try:
        lexer = get_lexer_by_name(language) if language else None
    except ClassNotFound:
        lexer = None
    return "" if lexer is None else str(highlight(code, lexer, _COLOURS))


def _name_turning(rendered: str) -> str:
    def named(match: re.Match[str]) -> str:
        return f'<span class="turning" title="U+{ord(match[0]):04X}">{match[0]}</span>'

    return TURNING.sub(named, rendered)


@lru_cache(2048)
def _mathml(tex: str, *, block: bool) -> str | None:
    """Return a formula as MathML, still to be sanitised; None if it cannot be read as one."""
    if len(tex) > FORMULA_CHARACTERS:
        return None
    try:
        element = convert_to_element(tex, display="block" if block else "inline")
    except NO_FORMULA:
        return None
    for part in element.iter():  # entities, and what the formula quotes, become plain text
        part.text = html.unescape(part.text) if part.text else part.text
        part.tail = html.unescape(part.tail) if part.tail else part.tail
    return tostring(element, encoding="unicode")


def _formula_rule(*, block: bool) -> Any:
    def rendered(_: object, tokens: Sequence[Token], i: int, *__: object) -> str:
        token = tokens[i]
        formula = _mathml(token.content.strip(), block=block)
        if formula is None:
            mark = "$$" if block else "$"
            formula = f"<code>{html.escape(mark + token.content + mark)}</code>"
        return f"<p>{formula}</p>\n" if token.block else formula

    return rendered
