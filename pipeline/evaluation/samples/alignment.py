"""All models must have answered the same prompts: an error otherwise, or the loss said aloud."""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Part = tuple[str, str]  # suite and prompt type
_BITS = 64  # sample numbers that fit into one word


class PromptNumbers:
    """Ids in the order in which they first occur, and which of them a model answered."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        self._answered: dict[Part, dict[str, bytearray]] = defaultdict(
            lambda: defaultdict(bytearray)
        )

    def add(self, part: Part, model: str, prompt: str) -> None:
        """A row: this model answered this prompt."""
        number = self.number.setdefault(prompt, len(self.number))
        seen = self._answered[part][model]
        seen.extend(bytes(max(0, number + 1 - len(seen))))
        seen[number] = 1

    def answered(self) -> dict[Part, dict[str, NDArray[np.bool_]]]:
        """For each part and model whether it answered each prompt, (N,)."""
        total = len(self.number)
        return {
            part: {
                model: np.frombuffer(seen.ljust(total, b"\0"), dtype=bool)
                for model, seen in seen_of.items()
            }
            for part, seen_of in self._answered.items()
        }


class SampleNumbers:
    """Which samples of each prompt of one model, suite and prompt type were taken: bits."""

    def __init__(self, prompts: int) -> None:
        self.taken = array("i", bytes(4 * prompts))
        self._bits = array("Q", bytes(8 * prompts))
        self._others: set[tuple[int, int]] = set()

    def take(self, prompt: int, k: int | None) -> tuple[int, bool]:
        """The sample's number, `k` or else the count so far, and whether it is a new one."""
        self.taken[prompt] += 1
        number = self.taken[prompt] - 1 if k is None else k
        inside = 0 <= number < _BITS
        if self._bits[prompt] >> number & 1 if inside else (prompt, number) in self._others:
            return number, False
        if k is not None and inside:
            self._bits[prompt] |= 1 << number
        elif k is not None:
            self._others.add((prompt, number))
        return number, True


# By part and model: whether each of all prompts was answered.
Answered = Mapping[Part, Mapping[str, NDArray[np.bool_]]]


def common_prompts(
    answered: Answered, missing: Literal["error", "intersection"], notes: list[str]
) -> dict[Part, NDArray[np.bool_]]:
    """Which prompts every model answered, within each suite and prompt type.

    Raises ValueError if prompts are missing and `missing` is "error"; otherwise leaves out the
    prompts that a model lacks and adds a sentence to `notes` that says how many. A model without
    any row in a part that others have is an error too, or is left out there, said aloud.
    """
    common: dict[Part, NDArray[np.bool_]] = {}
    for sentence in _absent(answered):
        if missing == "error":
            raise ValueError(f"{sentence}; give the missing rows or ask for --missing intersect")
        notes.append(f"{sentence}; it is left out there")
    for part, answered_of in answered.items():
        everything = np.logical_or.reduce(list(answered_of.values()))
        common[part] = np.logical_and.reduce(list(answered_of.values()))
        if np.array_equal(common[part], everything):
            continue
        lacking = ", ".join(
            f"{model} lacks {np.sum(everything & ~one)}"
            for model, one in sorted(answered_of.items())
            if not np.array_equal(one, everything)
        )
        sentence = f"{part[0]}, prompt type '{part[1]}': of {everything.sum()} prompts {lacking}"
        if missing == "error":
            raise ValueError(f"{sentence}; give the missing rows or ask for --missing intersect")
        if not common[part].any():
            raise ValueError(f"{sentence}; no prompt was answered by every model")
        notes.append(f"{sentence}; compared on the {common[part].sum()} that all models answered")
    return common


def _absent(answered: Answered) -> Iterator[str]:
    """Which model has no row at all in a part of a suite that it has rows of."""
    models: dict[str, set[str]] = {}
    for (suite, _), ids_of in answered.items():
        models.setdefault(suite, set()).update(ids_of)
    for (suite, prompt_type), ids_of in answered.items():
        for model in sorted(models[suite] - ids_of.keys()):
            yield f"{suite}, prompt type '{prompt_type}': {model} has no rows"


def matched_pairs(models: Sequence[str], against: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs to compare from patterns `A:B`; one `*` in A stands for the same text in B.

    "*:sft" compares all others with sft, "ppo-*:gpt-*" each ppo model with the gpt of its size.
    Without a pattern every pair is compared. Raises ValueError on a pattern that matches none.
    """
    if not against:
        return [(b, a) for i, a in enumerate(models) for b in models[i + 1 :]]
    found: list[tuple[str, str]] = []
    for pattern in against:
        first, colon, second = pattern.partition(":")
        if not colon:
            first, second = "*", pattern
        matches = [
            (model, second.replace("*", star))
            for model in models
            if (star := _star(first, model)) is not None and second.replace("*", star) != model
        ]
        pairs = [(a, b) for a, b in matches if b in models]
        if not pairs:
            raise ValueError(f"'{pattern}' matches no two models; there are {', '.join(models)}")
        found += [pair for pair in pairs if pair not in found]
    return found


def _star(pattern: str, model: str) -> str | None:
    """What `*` stands for where the pattern is the model, or None where it is not."""
    before, star, after = pattern.partition("*")
    if not star:
        return "" if pattern == model else None
    long_enough = len(model) >= len(before) + len(after)
    if not (long_enough and model.startswith(before) and model.endswith(after)):
        return None
    return model[len(before) : len(model) - len(after)]
