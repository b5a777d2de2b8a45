"""The words in which two outputs differ, marked inside their HTML.

Words are compared as the reader sees them: those of the rendered Markdown, with code and cells of
tables, and those of the plain text, where white space counts as well. Tags are passed on as they
are, a formula is one word, and what comes out is sanitised once more.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from html.parser import HTMLParser
from itertools import groupby

from labeling_ui.rendering import cleaned, plain_html, safe_html

# A word with its accents; one character of a script without spaces; a sign; a run of emoji.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[\w\u0300-\u036f]+|[!-/:-@\[-^`{-~]|[^\w\s\x00-\x7f]+"
)
LEAST_SHARED = 0.25  # texts with fewer words in common are different throughout: nothing is marked
ISLAND_WORDS, SEA_WORDS = 2, 4  # so few words alike between so many that differ are marked as well
EXACT_WORDS = 1500  # beyond, words that are everywhere begin no match: quadratic time otherwise
MOST_WORDS = 8000
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Marked:
    """Two texts with their differences marked; `num_changes` is None if they are too different."""

    texts: tuple[str, str]
    num_changes: int | None


@lru_cache(512)
def marked_html(a: str, b: str) -> Marked:
    """Mark the words that differ in two rendered Markdown texts."""
    return _marked(safe_html(a), safe_html(b), with_space=False)


@lru_cache(512)
def marked_plain(a: str, b: str) -> Marked:
    """Mark what differs in two plain texts, white space between words included."""
    return _marked(plain_html(a), plain_html(b), with_space=True)


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    part: int
    start: int
    end: int


@dataclass
class _Parts(HTMLParser):
    """Sanitised HTML as a row of parts: tags as they stand, texts, and whole formulas."""

    parts: list[tuple[str, str]] = field(default_factory=list)
    depth: int = 0  # inside a formula

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """Take a tag as it stands."""
        self._add("tag", self.get_starttag_text() or "", opens=tag == "math")

    def handle_endtag(self, tag: str) -> None:
        """Take a closing tag."""
        self._add("tag", f"</{tag}>", closes=tag == "math")

    def handle_data(self, data: str) -> None:
        """Take a text, its entities resolved."""
        self._add("text", html.escape(data, quote=False) if self.depth else data)

    def _add(self, kind: str, text: str, *, opens: bool = False, closes: bool = False) -> None:
        if self.depth:
            self.parts[-1] = ("formula", self.parts[-1][1] + text)
        else:
            self.parts.append(("formula" if opens else kind, text))
        self.depth += opens - closes


def _marked(a: str, b: str, *, with_space: bool) -> Marked:
    if a == b:
        return Marked((a, b), 0)
    sides = [_parts(a), _parts(b)]
    words = [_words(parts, with_space=with_space) for parts in sides]
    changes = _changes(*([word.text for word in side] for side in words))
    if changes is None:
        return Marked((a, b), None)
    texts = (
        _with_marks(parts, side, [change[i] for change in changes])
        for i, (parts, side) in enumerate(zip(sides, words, strict=True))
    )
    first, second = (cleaned(text, marks=True) for text in texts)
    return Marked((first, second), len(changes))


def _parts(text: str) -> list[tuple[str, str]]:
    parser = _Parts()
    parser.feed(text)
    parser.close()
    return parser.parts


def _words(parts: Sequence[tuple[str, str]], *, with_space: bool) -> list[_Word]:
    """Return the words of all parts; with their white space before them, where that counts."""
    words = []
    for i, (kind, text) in enumerate(parts):
        if kind == "formula":
            words.append(_Word(text, i, 0, len(text)))
        elif kind == "text":
            end = 0
            for match in WORD.finditer(text):
                space = text[end : match.start()] if with_space else ""
                start = match.start() if space in ("", " ") else end
                words.append(_Word(text[start : match.end()], i, start, match.end()))
                end = match.end()
    return words


def _changes(a: list[str], b: list[str]) -> list[tuple[Span, Span]] | None:
    """Return the spans of words that differ, side by side; None if little is shared."""
    if not a or not b or max(len(a), len(b)) > MOST_WORDS:
        return None
    matcher = SequenceMatcher(None, a, b, autojunk=max(len(a), len(b)) > EXACT_WORDS)
    if matcher.quick_ratio() < LEAST_SHARED or matcher.ratio() < LEAST_SHARED:
        return None
    changes: list[tuple[Span, Span]] = []
    for kind, *ends in matcher.get_opcodes():
        if kind != "equal":
            changes.append(((ends[0], ends[1]), (ends[2], ends[3])))
    return _joined(changes)


def _joined(changes: list[tuple[Span, Span]]) -> list[tuple[Span, Span]]:
    """Join long changes that only a word or two divide: such words are alike by chance."""
    joined: list[tuple[Span, Span]] = []
    for change in changes:
        if joined:
            (a, b), (c, d) = joined[-1], change
            sizes = [max(x[1] - x[0], y[1] - y[0]) for x, y in ((a, b), (c, d))]
            if c[0] - a[1] <= ISLAND_WORDS and min(sizes) >= SEA_WORDS:
                joined[-1] = ((a[0], c[1]), (b[0], d[1]))
                continue
        joined.append(change)
    return joined


def _with_marks(
    parts: Sequence[tuple[str, str]], words: Sequence[_Word], spans: Sequence[Span]
) -> str:
    """Return the HTML with a mark around each run of changed words, and one where words lack."""
    runs: dict[int, list[tuple[int, int, int]]] = {}  # by part: start, end, number of the change
    for n, (first, last) in enumerate(spans):
        if first == last:  # only the other side has words here
            word = words[first - 1] if first else words[0]
            at = word.end if first else word.start
            runs.setdefault(word.part, []).append((at, at, n))
            continue
        for part, group in groupby(words[first:last], lambda word: word.part):
            run = list(group)
            runs.setdefault(part, []).append((run[0].start, run[-1].end, n))
    return "".join(_part_with_marks(*part, runs.get(i, [])) for i, part in enumerate(parts))


def _part_with_marks(kind: str, text: str, runs: Sequence[tuple[int, int, int]]) -> str:
    def escaped(piece: str) -> str:
        return html.escape(piece, quote=False) if kind == "text" else piece

    pieces, end = [], 0
    for start, stop, n in runs:
        name = ' class="lacks"' if start == stop else ""
        mark = f'<mark data-change="{n}"{name}>{escaped(text[start:stop])}</mark>'
        pieces += [escaped(text[end:start]), mark]
        end = stop
    return "".join(pieces) + escaped(text[end:])
