"""All models must have answered the same prompts: an error otherwise, or the loss said aloud."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.prompt_numbers import Part

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
