"""Token ids of a text in which only a template's own markers become control tokens.

A tokenizer turns the string of every added token into that token, wherever the string comes from.
So the strings in a text are replaced by placeholders before the template is rendered; then the
template's own markers are renamed, the placeholders are replaced by the strings again, and a copy
of the tokenizer that has the markers under their new names alone encodes the whole. The copy is the
same in all else: merges, normalisation, and spaces around tokens. Texts without such strings,
nearly all, are encoded by the tokenizer itself.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_PRIVATE = range(0x10F000, 0x10FFFD)  # characters without a meaning in Unicode


@dataclass(frozen=True, slots=True)
class Marks:
    """Two characters that occur in none of some texts."""

    text: str  # around the number of a string in a text
    token: str  # around the number of a template's token

    @classmethod
    def outside(cls, texts: Collection[str]) -> "Marks":
        """Return the first two that occur in none of the texts."""
        used = {letter for text in texts for letter in text if ord(letter) in _PRIVATE}
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        return cls(next(free), next(free))


class ControlTokens:
    """The tokens of a tokenizer that no text may turn into."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: Iterable[str] = ()) -> None:
        """Protect every special token, and those added ones that are `written` by a template."""
        added = list(tokenizer.added_tokens_decoder.values())
        written = {*written, *tokenizer.all_special_tokens}  # one may lack the flag
        self.tokenizer = tokenizer
        self.strings = tuple(
            token.content for token in added if token.special or token.content in written
        )
        self.number = {string: number for number, string in enumerate(self.strings)}
        self.pattern = _any_of(self.strings)
        self.normalized = any(t.normalized for t in added if t.content in self.number)
        self._copies: dict[str, Tokenizer] = {}  # by their mark

    def found_in(self, text: str) -> bool:
        """Return true where the tokenizer would turn a part of the text into one of these."""
        if self.pattern.search(text):
            return True
        if not self.normalized or not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return False
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        if normalizer is None:
            return False
        return bool(self.pattern.search(normalizer.normalize_str(text)))

    def hidden(self, text: str, marks: Marks, pattern: re.Pattern[str] | None = None) -> str:
        """Return the text with placeholders for the tokens' strings (of `pattern`, if given)."""
        mark = marks.text
        return (pattern or self.pattern).sub(lambda at: f"{mark}{self.number[at[0]]}{mark}", text)

    def encode(self, text: str, marks: Marks) -> list[int]:
        """Return ids of a text whose placeholders are text and whose tokens are tokens."""
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return list(self._piecewise(text, marks))
        mark = marks.token
        text = self.pattern.sub(lambda at: f"{mark}{self.number[at[0]]}{mark}", text)
        if mark not in self._copies:  # hardly ever another than the first
            self._copies.clear()
            self._copies[mark] = _renamed(self.tokenizer.backend_tokenizer, self.strings, mark)
        plain = self._restored(text, marks)
        return list(self._copies[mark].encode(plain, add_special_tokens=False).ids)

    def _restored(self, text: str, marks: Marks) -> str:
        """Return the text with the strings in place of their placeholders."""
        placeholder = re.compile(f"{marks.text}(\\d+){marks.text}")
        text = placeholder.sub(lambda at: self.strings[int(at[1])], text)
        return text.replace(marks.text, "")  # a template may have cut a placeholder

    def _piecewise(self, text: str, marks: Marks) -> Iterator[int]:
        """Yield the ids of a tokenizer that is written in Python and cannot be copied and renamed.

        Raises ValueError where it makes a control token of plain text all the same.
        """
        tokens = {self.tokenizer.convert_tokens_to_ids(string) for string in self.strings}
        for part in re.split(f"({self.pattern.pattern})", text):
            if part in self.number:
                yield cast(int, self.tokenizer.convert_tokens_to_ids(part))
                continue
            ids = self.tokenizer.encode(
                self._restored(part, marks), add_special_tokens=False, split_special_tokens=True
            )
            if not tokens.isdisjoint(ids):
                raise ValueError(
                    f"tokenizer '{self.tokenizer.name_or_path}' makes a control token of "
                    f"{self._restored(part, marks)[:60]!r}; expected a text without any"
                )
            yield from ids


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of the longest string at a position; of nothing without strings."""
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _renamed(tokenizer: Tokenizer, strings: tuple[str, ...], mark: str) -> Tokenizer:
    """Return a copy in which the n-th string is called `mark` n `mark`, with the same id."""
    names = {string: f"{mark}{number}{mark}" for number, string in enumerate(strings)}
    whole: dict[str, Any] = json.loads(tokenizer.to_str())
    whole |= {"truncation": None, "padding": None, "post_processor": None}
    for token in whole["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = whole["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): n for piece, n in model["vocab"].items()}
    else:  # Unigram
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        merges = (merge for merge in model["merges"] if names.keys().isdisjoint(_parts(merge)))
        model["merges"] = list(merges)
    return Tokenizer.from_str(json.dumps(whole))


def _parts(merge: str | list[str]) -> tuple[str, str, str]:
    """Return both halves of a merge and their union."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right
