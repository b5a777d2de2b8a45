"""Texts with a label, for probes: rows {"text", "label"} of a file or of the hub.

A source is a file that reward_models/row_files.py reads or `hf:NAME` (see
stages/data/hub_data.py). Other names of the two fields can be given; labels are read as text.
"""

from dataclasses import dataclass
from random import Random

from stages.data.demonstrations import source_rows


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts and their labels, in the order of the source."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, places: list[int]) -> "LabelledTexts":
        """Those at the given places."""
        return LabelledTexts(
            tuple(self.texts[place] for place in places),
            tuple(self.labels[place] for place in places),
        )


def load_labelled_texts(source: str, *, text: str = "text", label: str = "label") -> LabelledTexts:
    """All rows of a source; ValueError `file:line: ...` at the first that has no text or label."""
    texts, labels = [], []
    for where, row in source_rows(source):
        for field in (text, label):
            if field not in row:
                raise ValueError(f"{where}: no field '{field}'; it has {', '.join(map(str, row))}")
        said, named = row[text], row[label]
        if not isinstance(said, str) or not said.strip():
            raise ValueError(f"{where}: {text} is {said!r:.40}; expected a text that is not empty")
        if isinstance(named, bool) or not isinstance(named, str | int) or named == "":
            raise ValueError(
                f"{where}: {label} is {named!r:.40}; expected a word or a whole number"
            )
        texts.append(said)
        labels.append(str(named))
    if len(set(labels)) < 2:
        raise ValueError(f"{source}: {len(set(labels))} label(s) in {len(texts)} rows; expected 2+")
    return LabelledTexts(tuple(texts), tuple(labels))


def split_off(data: LabelledTexts, share: float, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Training texts and a random `share` of test texts, at least one of each."""
    places = list(range(len(data)))
    Random(f"probe/{seed}").shuffle(places)
    held = min(len(data) - 1, max(1, round(share * len(data))))
    return data.of(sorted(places[held:])), data.of(sorted(places[:held]))
