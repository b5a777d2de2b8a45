"""All models must have answered the same prompts: an error otherwise, or the loss said aloud."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from pipeline.evaluation.samples import Completion


def aligned(
    rows: Sequence[Completion], missing: Literal["error", "intersection"], notes: list[str]
) -> list[Completion]:
    """Rows whose prompt every model answered, within each suite and prompt type.

    Raises ValueError if prompts are missing and `missing` is "error"; otherwise drops the prompts
    that a model lacks and adds a sentence to `notes` that says how many.
    """
    answered: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        answered[row.suite, row.prompt_type][row.model].add(row.id)
    common: dict[tuple[str, str], set[str]] = {}
    for part, ids_of in answered.items():
        everything = set().union(*ids_of.values())
        common[part] = set.intersection(*ids_of.values())
        if common[part] == everything:
            continue
        lacking = ", ".join(
            f"{model} lacks {len(everything - ids)}"
            for model, ids in sorted(ids_of.items())
            if ids != everything
        )
        sentence = f"{part[0]}, prompt type '{part[1]}': of {len(everything)} prompts {lacking}"
        if missing == "error":
            raise ValueError(f"{sentence}; give the missing rows or ask for the intersection")
        if not common[part]:
            raise ValueError(f"{sentence}; no prompt was answered by every model")
        notes.append(f"{sentence}; compared on the {len(common[part])} that all models answered")
    return [row for row in rows if row.id in common[row.suite, row.prompt_type]]


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
