"""Held-out rows, and their overlap with what is trained on.

Ouyang et al. 2022 (section 3.2) split their prompts by user. Here rows that share a prompt, white
space and case aside, or a user stand on one side together; where rows name no user that is a split
by prompt. Which rows those are depends on the seed and on what they say, not on their order.
"""

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import TypeVar

from reward_models.records import Demonstration, Prompt

Row = Demonstration | Prompt
R = TypeVar("R", Demonstration, Prompt)
Label = tuple[str, str]  # ("prompt", its text) or ("user", a name)
OVERLAP = "overlap.json"  # in the folder of data sets
EXAMPLE_LENGTH = 60  # characters of an example

log = logging.getLogger(__name__)


def normalised(text: str) -> str:
    """Return the text with single spaces and without case."""
    return " ".join(text.split()).casefold()


def prompt_key(row: Row) -> str:
    """Return history, context and prompt of a row, normalised."""
    turns = map(str, row.history)
    return "\n".join(map(normalised, [*turns, row.context or "", row.prompt]))


def labels(row: Row) -> list[Label]:
    """Return the labels of a row: its prompt, and its user if it names one."""
    user = [] if row.user is None else [("user", row.user)]
    return [("prompt", prompt_key(row)), *user]


class Groups:
    """Rows joined where they share a prompt or a user, directly or through others."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._above: dict[Label, Label] = {}
        for row in rows:
            first, *others = labels(row)
            for label in (first, *others):
                self._above.setdefault(label, label)
            for other in others:
                self._above[self._top(other)] = self._top(first)

    def of(self, row: Row) -> Label:
        """Return the group of a row that was given."""
        return self._top(labels(row)[0])

    def in_order(self, seed: str) -> dict[Label, list[Label]]:
        """Return every group with its labels, in an order drawn from the seed and the labels."""
        members: dict[Label, list[Label]] = defaultdict(list)
        for label in self._above:
            members[self._top(label)].append(label)
        drawn = {
            group: min(_digest(seed, *label) for label in inside)
            for group, inside in members.items()
        }
        return {group: members[group] for group in sorted(members, key=drawn.__getitem__)}

    def _top(self, label: Label) -> Label:
        while self._above[label] != label:
            self._above[label] = self._above[self._above[label]]
            label = self._above[label]
        return label


def split(rows: Sequence[R], number: int, seed: str, where: str) -> tuple[list[R], list[R]]:
    """Return rows to train on and about `number` to hold out, no prompt and no user in both.

    ValueError where all rows share a prompt or a user.
    """
    groups = Groups(rows)
    held = choose(groups, rows, number, list(groups.in_order(seed)))
    if len({groups.of(row) for row in rows} - held) == 0 or not held:
        raise ValueError(
            f"{where}: {len(rows)} in it, which all share a prompt or a user; expected at least "
            "two that do not, one of them to hold out, or a file of its own for validation"
        )
    training = [row for row in rows if groups.of(row) not in held]
    return training, [row for row in rows if groups.of(row) in held]


def choose(groups: Groups, rows: Sequence[Row], number: int, order: Iterable[Label]) -> set[Label]:
    """Choose groups, first in order first, that have at most `number` of the rows together.

    One group at least, the smallest, unless it is the only one.
    """
    sizes = Counter(groups.of(row) for row in rows)
    there = [group for group in order if group in sizes]
    chosen, held = set(), 0
    for group in there:
        if held + sizes[group] <= number:
            chosen.add(group)
            held += sizes[group]
    if not chosen and there and len(sizes) > 1:
        chosen = {min(there, key=sizes.__getitem__)}
    return chosen


def validation_prompts(
    ppo: Sequence[Prompt],
    ranking: Sequence[Prompt],
    number: int,
    seed: str,
    *,
    ranked: Collection[Row],
    demonstrations: Collection[Row],
    where: str,
) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """Return prompts for PPO, to be ranked, and to validate by, the last apart from the others.

    Prompts that are `ranked` already are taken only where there are no others; among the others,
    those that are not in the demonstrations, and not to be ranked, come first.
    """
    groups = Groups([*ppo, *ranking])
    fixed, known = _labels_of(ranked), _labels_of([*demonstrations, *ranking])
    order = groups.in_order(seed)
    free = {group: inside for group, inside in order.items() if fixed.isdisjoint(inside)}
    if not any(groups.of(row) in free for row in ppo):
        log.warning(
            "%s: all %d prompts were ranked, so the reward model chooses by prompts that it learnt "
            "from; give data.validation_prompts a file of its own",
            where,
            len(ppo),
        )
        free = order
    held = choose(groups, ppo, number, sorted(free, key=lambda g: not known.isdisjoint(free[g])))
    sides = [[row for row in rows if groups.of(row) not in held] for rows in (ppo, ranking)]
    if not held or not all(sides):
        raise ValueError(
            f"{where}: {len(ppo)} in it, of which too few share no prompt and no user; expected at "
            "least two that do not, one of them to validate by, or data.validation_prompts"
        )
    return sides[0], sides[1], [row for row in ppo if groups.of(row) in held]


def limited(rows: Sequence[R], per_user: int | None, prefix: int | None, where: str) -> list[R]:
    """Return the rows but those beyond `per_user` prompts of a user, and near-duplicates.

    Prompts whose first `prefix` characters are those of an earlier prompt are near-duplicates. How
    many are left out is logged.
    """
    used, first = [], dict[str, str]()
    prompts: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        key = prompt_key(row)
        beginning = key if prefix is None or len(key) < prefix else key[:prefix]
        if first.setdefault(beginning, key) != key:
            continue
        of_user = prompts[row.user or ""]
        if per_user is not None and row.user is not None and len(of_user | {key}) > per_user:
            continue
        of_user.add(key)
        used.append(row)
    if len(used) < len(rows):
        log.warning(
            "%s: %d of %d rows are left out by data.prompts_per_user and data.shared_prefix",
            *(where, len(rows) - len(used), len(rows)),
        )
    return used


@dataclass(frozen=True, slots=True)
class Overlap:
    """The number of held-out rows whose prompt, or user, is in a training set."""

    held_out: str
    training: str
    prompts: int
    users: int
    of: int
    example: str

    def __str__(self) -> str:
        shared = self.prompts or self.users
        what = "prompts" if self.prompts else "rows' users"
        return (
            f"{self.held_out}: {shared} of {self.of} {what} are also in {self.training}, such as "
            f"'{self.example}'"
        )


def overlaps(
    held_out: Mapping[str, Sequence[Row]], training: Mapping[str, Sequence[Row]]
) -> list[Overlap]:
    """Return every pair of sets that share something."""
    overlaps = []
    for training_name, trained in training.items():
        known = _labels_of(trained)
        for name, rows in held_out.items():
            prompts = [row for row in rows if labels(row)[0] in known]
            users = [row for row in rows if not known.isdisjoint(labels(row)[1:])]
            if prompts or users:
                example = (prompts or users)[0].prompt[:EXAMPLE_LENGTH]
                counts = (len(prompts), len(users), len(rows))
                overlaps.append(Overlap(name, training_name, *counts, example))
    return overlaps


def report_overlaps(
    path: Path, held_out: Mapping[str, Sequence[Row]], training: Mapping[str, Sequence[Row]]
) -> None:
    """Log how far held-out rows are also trained on, and write it as a JSON list."""
    shared = overlaps(held_out, training)
    for overlap in shared:
        log.warning("%s", overlap)
    text = json.dumps([asdict(one) for one in shared], indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def read_overlaps(path: Path) -> list[Overlap]:
    """Read the overlaps of a run; none where there is no such file."""
    if not path.is_file():
        return []
    return [Overlap(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def held_out_digest(seed: str, text: str) -> bytes:
    """Return the number by which a text is held out; case and white space do not matter."""
    return _digest(seed, normalised(text))


def smallest(digests: Iterable[bytes], number: int) -> tuple[set[bytes], bool]:
    """Return the smallest `number` of different digests, and true where there are others."""
    held: set[int] = set()
    heap: list[int] = []  # negated: the largest comes first
    others = False
    for digest in digests:
        value = int.from_bytes(digest)
        if value in held:
            continue
        held.add(value)
        heappush(heap, -value)
        if len(held) > number:
            held.remove(-heappop(heap))
            others = True
    return {value.to_bytes(32) for value in held}, others


def _labels_of(rows: Iterable[Row]) -> set[Label]:
    return {label for row in rows for label in labels(row)}


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).digest()
