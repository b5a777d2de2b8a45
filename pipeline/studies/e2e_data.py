"""The E2E NLG data as two domains: coffee shops to train on, pubs and restaurants to test beyond.

    python -m pipeline.studies.e2e_data DEVSET TESTSET [--out data/e2e]

DEVSET and TESTSET are `devset.csv` and `testset_w_refs.csv` of the E2E challenge (Novikova et al.
2017, CC BY-SA 4.0): columns `mr`, a meaning representation, and `ref`, a text by a person. All
texts about one meaning representation are its references. Nothing is downloaded.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from pipeline.cli.errors import run_module
from pipeline.cli.options import path
from pipeline.studies.robustness.config import REFERENCES
from reward_models.atomic_files import write_jsonl
from reward_models.records import Demonstration
from reward_models.row_files import csv_rows

ASK = "Describe the place in one or two sentences: {mr}"
TRAINED = ("coffee shop",)
BEYOND = ("pub", "restaurant")


def write_e2e(
    devset: Path,
    testset: Path,
    out: Annotated[Path, typer.Option(parser=path, help="folder to write to")] = Path("data/e2e"),
    train: Annotated[int, typer.Option(help="demonstrations to train on")] = 200,
    validation: Annotated[int, typer.Option(help="demonstrations that choose the epoch")] = 30,
    test: Annotated[int, typer.Option(help="meaning representations of each domain")] = 50,
    seed: Annotated[int, typer.Option(help="of the choice")] = 0,
) -> None:
    """Write train, validation, in_domain and out_of_domain as JSON lines."""
    known = _of_kind(_references(devset), TRAINED)
    beyond = _of_kind(_references(testset), BEYOND)
    wanted = train + validation + test
    if len(known) < wanted or len(beyond) < test:
        raise ValueError(
            f"{devset} has {len(known)} of {', '.join(TRAINED)}, {testset} {len(beyond)} of "
            f"{', '.join(BEYOND)}; expected {wanted} and {test}"
        )
    rng = Random(f"e2e/{seed}")
    chosen, others = rng.sample(sorted(known), wanted), rng.sample(sorted(beyond), test)
    out.mkdir(parents=True, exist_ok=True)
    parts = {
        "train": chosen[:train],
        "validation": chosen[train : train + validation],
        "in_domain": chosen[train + validation :],
        "out_of_domain": others,
    }
    for name, meanings in parts.items():
        texts = {meaning: (known if meaning in known else beyond)[meaning] for meaning in meanings}
        write_jsonl(out / f"{name}.jsonl", (_row(m, t, rng).to_json() for m, t in texts.items()))


def _references(path: Path) -> Mapping[str, Sequence[str]]:
    """Return every meaning representation with its texts."""
    texts: dict[str, list[str]] = defaultdict(list)
    for where, row in csv_rows(path):
        if not {"mr", "ref"} <= row.keys():
            raise ValueError(f"{where}: columns {sorted(row)}; expected mr and ref")
        texts[row["mr"]].append(row["ref"].strip())
    return texts


def _of_kind(
    references: Mapping[str, Sequence[str]], kinds: Collection[str]
) -> Mapping[str, Sequence[str]]:
    """Return those whose `eatType` is one of the kinds."""

    def kind(meaning: str) -> str:
        match = re.search(r"eatType\[(.*?)\]", meaning)
        return match[1] if match else ""

    return {meaning: texts for meaning, texts in references.items() if kind(meaning) in kinds}


def _row(meaning: str, texts: Sequence[str], rng: Random) -> Demonstration:
    return Demonstration(
        ASK.format(mr=meaning), rng.choice(texts), source="e2e", extra={REFERENCES: list(texts)}
    )


if __name__ == "__main__":
    run_module(write_e2e)
