"""When two responses to a prompt are too much alike for a person to rank them.

Two responses are near-duplicates when their words are the same but for case, accents' encoding,
punctuation and white space, or when the share of words that match in order (difflib's ratio, 2 x
matches / words of both) reaches a threshold. Words, not letters, are compared, so that "in 1907"
and "in 1908" differ by a whole word: a short answer with one other fact is another answer.
"""

import re
import unicodedata
from collections.abc import Iterable
from difflib import SequenceMatcher

_WORDS = re.compile(r"\w+")


def words(text: str) -> tuple[str, ...]:
    """The words of a text as they count for likeness; a text without any is one word itself."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORDS.findall(folded)) or (folded.strip(),)


def is_near_duplicate(text: str, others: Iterable[str], threshold: float) -> bool:
    """Whether a text says the same as one of the others, or almost (`threshold` from 0 to 1)."""
    said = words(text)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(said)
    for other in map(words, others):
        if other == said:
            return True
        matcher.set_seq1(other)
        # The two upper bounds are cheap and settle most pairs.
        bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
        if all(bound() >= threshold for bound in bounds):
            return True
    return False
