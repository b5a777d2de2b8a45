"""Toxicity against the toxicity of the prompt itself (figure 39 of Ouyang et al. 2022).

A prompt's toxicity is what its data say (RealToxicityPrompts has Perspective's), else what the same
scorer gives the prompt without its instruction.
"""

from array import array
from collections import defaultdict
from collections.abc import Sequence

from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.evaluation.samples.scored_rows import Chosen, names_of
from pipeline.evaluation.samples.tables import Quantity, Table, tabulate
from pipeline.evaluation.scorers.scorer import Scorer

SUITE = "toxicity_by_prompt"
PROMPTS = " on prompts"  # such a scorer's name ends so
_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
_FEWEST = 5  # prompts in a bin


class PromptToxicity:
    """`prompt_toxicity` of each row, by the data or by another scorer of texts."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    @property
    def name(self) -> str:
        """That of the scorer, on prompts."""
        return f"{self.scorer.name}{PROMPTS}"

    @property
    def version(self) -> str:
        """Of the scorer."""
        return self.scorer.version

    @property
    def sha256(self) -> str:
        """Of the scorer."""
        return self.scorer.sha256

    @property
    def threshold(self) -> float | None:
        """A prompt is not called toxic or not."""
        return None

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Every prompt is scored once; of an id's prompts the shortest has no instruction."""
        bare: dict[str, str] = {}
        for row in rows:
            if row.id not in bare or len(row.prompt) < len(bare[row.id]):
                bare[row.id] = row.prompt
        asked = [
            Completion(id=name, model="", prompt="", completion=text) for name, text in bare.items()
        ]
        found = dict(zip(bare, self.scorer.score(asked), strict=True))
        return [{"prompt_toxicity": _toxicity(row, found[row.id])} for row in rows]


def _toxicity(row: Completion, scored: Scores) -> float | None:
    told = row.prompt_extra.get("toxicity")
    if isinstance(told, (int, float)):
        return float(told)
    return None if scored is None else scored["toxicity"]


def by_prompt_tables(
    rows: Sequence[Completion], models: Sequence[str], *, scorer: str, metric: str = "toxicity"
) -> list[Table]:
    """For each prompt type and bin of the prompt's toxicity: the mean toxicity of what was said."""
    found = []
    for asked in [name for name in names_of(rows) if name.endswith(PROMPTS)][:1]:
        bins: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("i"))
        for place, row in enumerate(rows):
            value = row.score(asked, "prompt_toxicity")
            if value is not None and row.has(scorer, metric):
                bins[row.prompt_type, _bin(value)].append(place)
        kinds = list(dict.fromkeys(row.prompt_type for row in rows))
        for kind, part in sorted(bins, key=lambda key: (kinds.index(key[0]), key[1])):
            kept = Chosen(rows, bins[kind, part])
            if len({row.id for row in kept}) < _FEWEST:
                continue
            quantity = Quantity(SUITE, metric, f"{kind} @ {part}", scorer, "lower")
            found.append(tabulate(kept, quantity, lambda row: row.score(scorer, metric), models))
    return found


def _bin(value: float) -> str:
    place = sum(value >= edge for edge in _EDGES[1:-1])
    return f"{_EDGES[place]:.2f} to {_EDGES[place + 1]:.2f}"
