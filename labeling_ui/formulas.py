"""TeX of unknown origin as MathML, on the server: the browser needs no script and no font for it.

What cannot be read as a formula, or is too long or too deep to be one, stays the text it was.
"""

import html
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element, ParseError, tostring

from latex2mathml.converter import convert_to_element
from latex2mathml.exceptions import (
    DenominatorNotFoundError,
    DoubleSubscriptsError,
    DoubleSuperscriptsError,
    ExtraLeftOrMissingRightError,
    InvalidAlignmentError,
    InvalidStyleForGenfracError,
    InvalidWidthError,
    LimitsMustFollowMathOperatorError,
    MissingEndError,
    MissingSuperScriptOrSubscriptError,
    NoAvailableTokensError,
    NumeratorNotFoundError,
)
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin

TAGS = {
    *("math", "mrow", "mi", "mo", "mn", "mtext", "mspace", "ms", "mfrac", "msqrt", "mroot"),
    *("msup", "msub", "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd"),
    *("mstyle", "mpadded", "menclose", "mphantom"),
}
ATTRIBUTES = {
    "math": {"display"},
    "mo": {"stretchy", "fence", "form", "lspace", "rspace", "minsize", "maxsize"},
    "mi": {"mathvariant"},
    "mfrac": {"linethickness"},
    "mspace": {"width"},
    "mtable": {"columnalign"},
    "menclose": {"notation"},
}
CHARACTERS = 2000
UNREADABLE = (
    *(DenominatorNotFoundError, DoubleSubscriptsError, DoubleSuperscriptsError),
    *(ExtraLeftOrMissingRightError, InvalidAlignmentError, InvalidStyleForGenfracError),
    *(InvalidWidthError, LimitsMustFollowMathOperatorError, MissingEndError),
    *(MissingSuperScriptOrSubscriptError, NoAvailableTokensError, NumeratorNotFoundError),
    # Its parser also stumbles with Python's own errors, over texts that are no TeX.
    *(RecursionError, ValueError, KeyError, IndexError, StopIteration, TypeError, AttributeError),
    *(ParseError, AssertionError, OverflowError),
)


def add_formulas(markdown: MarkdownIt) -> MarkdownIt:
    r"""Let Markdown know $..$, $$..$$, \(..\) and \[..\]."""
    dollarmath_plugin(markdown, allow_labels=False, allow_space=False, allow_digits=False)
    texmath_plugin(markdown, delimiters="brackets")
    for name, block in (("math_inline", False), ("math_inline_double", True), ("math_block", True)):
        markdown.add_render_rule(name, _rule(block=block))
    return markdown


@lru_cache(2048)
def mathml(tex: str, *, block: bool) -> str | None:
    """A formula as MathML; None if it is not to be read as one. Still to be sanitised."""
    if len(tex) > CHARACTERS:
        return None
    try:
        element = convert_to_element(tex, display="block" if block else "inline")
    except UNREADABLE:
        return None
    _as_text(element)
    return tostring(element, encoding="unicode")


def _as_text(element: Element) -> None:
    """The converter writes entities, and what a formula quotes as it is; both become plain text."""
    for part in element.iter():
        part.text = html.unescape(part.text) if part.text else part.text
        part.tail = html.unescape(part.tail) if part.tail else part.tail


def _rule(*, block: bool) -> Any:
    def rendered(_: object, tokens: Sequence[Token], i: int, *__: object) -> str:
        token = tokens[i]
        made = mathml(token.content.strip(), block=block)
        if made is None:
            ends = ("$$", "$$") if block else ("$", "$")
            made = f"<code>{html.escape(ends[0] + token.content + ends[1])}</code>"
        return f"<p>{made}</p>\n" if token.block else made

    return rendered
