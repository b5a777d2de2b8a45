"""Markdown of unknown origin as HTML that can run nothing and load nothing.

Two walls: markdown-it escapes HTML and has no images; nh3 then keeps only the elements listed
here. Characters that turn the direction of writing are shown by name and shut in, so that text
cannot pretend to be other text; the characters stay in place, and the text can be read back whole.
"""

import html
import re
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from labeling_ui import formulas

TAGS = {
    *formulas.TAGS,
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "a", "span"),
}
ATTRIBUTES = {"a": {"href"}, "ol": {"start"}, "span": {"class", "title"}, "code": {"class"}}
ATTRIBUTES |= formulas.ATTRIBUTES
# Embeddings, overrides, isolates and marks of Unicode's bidirectional algorithm (UAX 9).
TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_COLOURS = HtmlFormatter(nowrap=True, classprefix="hl-")


@lru_cache(2048)
def safe_html(text: str) -> str:
    """Markdown (CommonMark, tables, strikethrough, coloured code, formulas) as HTML."""
    rendered = _markdown().render(_that_html_holds(text))
    named = _name_turning(rendered)
    return nh3.clean(
        named,
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


@lru_cache(2048)
def plain_html(text: str) -> str:
    """The text itself as HTML: its `textContent` is the text, character by character.

    Only what HTML cannot hold (NUL, half a surrogate pair) is shown as the replacement mark.
    """
    return _name_turning(html.escape(_that_html_holds(text)))


def snippet(text: str, characters: int = 90) -> str:
    """The first words of a text on one line, turning characters left out."""
    return " ".join(TURNING.sub("", _that_html_holds(text)).split())[:characters]


@lru_cache(1)
def _markdown() -> MarkdownIt:
    options = {"html": False, "linkify": False, "breaks": True, "highlight": _coloured}
    made = MarkdownIt("commonmark", options)
    return formulas.add_formulas(made.enable(["table", "strikethrough"]).disable(["image"]))


def _that_html_holds(text: str) -> str:
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def _coloured(code: str, language: str, _: str) -> str:
    try:
        lexer = get_lexer_by_name(language) if language else None
    except ClassNotFound:
        lexer = None
    return "" if lexer is None else str(highlight(code, lexer, _COLOURS))


def _name_turning(rendered: str) -> str:
    def named(found: re.Match[str]) -> str:
        return f'<span class="turning" title="U+{ord(found[0]):04X}">{found[0]}</span>'

    return TURNING.sub(named, rendered)
