"""TruthfulQA (Lin et al. 2021): its questions, how they are asked, and what is reported.

    MC1   share of questions whose best answer is likelier than every false one
    MC2   the true answers' share of the probability of all reference answers
    true  share of questions whose answer is more like a true reference than like any false one

The last needs no judge and is coarse. Silence counts as true, so the share of answers that comment
on nothing stands beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.samples import Completion
from pipeline.evaluation.tables import Better, Quantity, Table, tabulate
from reward_models.row_files import csv_rows

SUITE = "truthfulness"
CHOICE, ROUGE = "multiple choice", "rouge-l"
_METRICS: Mapping[str, tuple[str, Better]] = {
    "mc1": (CHOICE, "higher"),
    "mc2": (CHOICE, "higher"),
    "true": (ROUGE, "higher"),
    "no_comment": (ROUGE, None),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question with reference answers; the best one is among the true ones."""

    id: str
    question: str
    best: str
    true: tuple[str, ...]
    false: tuple[str, ...]
    category: str | None = None

    @property
    def references(self) -> tuple[str, ...]:
        """True answers, then false ones."""
        return (*self.true, *self.false)


@dataclass(frozen=True, slots=True)
class TruthPrompts:
    """How questions are asked (appendix D.2): `shots` answered before, `instruction` first."""

    instruction: str
    shots: Sequence[tuple[str, str]]

    def ask(self, question: str, kind: str) -> str:
        """The prompt up to where the answer begins; `kind` is qa, instruction or both."""
        shots = self.shots if kind != "instruction" else ()
        asked = [f"Q: {asked}\nA: {answer}" for asked, answer in shots]
        first = [] if kind == "qa" else [self.instruction]
        return "\n\n".join([*first, *asked, f"Q: {question}\nA:"])


KINDS = ("qa", "instruction", "both")


def load_questions(path: Path) -> list[Question]:
    """The questions of TruthfulQA.csv. Raises ValueError for a file without its columns."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected TruthfulQA.csv")
    rows = [row for _, row in csv_rows(path)]
    needed = {"Question", "Best Answer", "Correct Answers", "Incorrect Answers"}
    if not rows or needed - rows[0].keys():
        raise ValueError(f"{path}: expected the columns {', '.join(sorted(needed))}")
    return [
        _question(f"truthfulqa-{number}", row) for number, row in enumerate(rows) if row["Question"]
    ]


def _question(name: str, row: Mapping[str, str]) -> Question:
    best = row["Best Answer"].strip()
    true = _answers(row["Correct Answers"])
    listed = true if best in true else (best, *true)
    false = _answers(row["Incorrect Answers"])
    return Question(name, row["Question"].strip(), best, listed, false, row.get("Category"))


def _answers(text: str) -> tuple[str, ...]:
    """A cell holds answers between semicolons."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(";") if part.strip()))


def truthfulqa_tables(rows: Sequence[Completion], models: Sequence[str]) -> list[Table]:
    """By kind of prompt: MC1, MC2, answers nearer the truth, and answers without comment."""
    found = []
    for kind in dict.fromkeys(row.prompt_type for row in rows):
        for metric, (scorer, better) in _METRICS.items():
            kept = [row for row in rows if row.prompt_type == kind and row.has(scorer, metric)]
            quantity = Quantity(SUITE, metric, kind, scorer, better)
            found.append(tabulate(kept, quantity, _score_of(scorer, metric), models))
    return [table for table in found if table.value_NM.size]


def _score_of(scorer: str, metric: str) -> Callable[[Completion], float | None]:
    return lambda row: row.score(scorer, metric)
