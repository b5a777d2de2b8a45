"""The card of a reward model: where it comes from and what it may be used with.

The card lies beside the weights as `reward.json`, with the bias in it, where a person can read it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Self

from reward_models.atomic_files import write_json

CARD = "reward.json"
LIBRARIES = ("torch", "transformers", "peft", "safetensors")


@dataclass(frozen=True, slots=True)
class RewardCard:
    """`base` and the hash of its weights, the tokenizer's hash, and who made the labels.

    `base_rows` are the rows of the base's token tables that the hash counts.

    A probe is `head_only`: its backbone is the base's, unchanged. With `pooling` mean the head
    takes the mean of all hidden states so far instead of the last; `inner_width` is that of a layer
    before the head, 0 for none. `divided_by` is the scale that scores were divided by, beside the
    bias; `tokenizer` is None and `label_kinds` is empty until the model has been trained.
    """

    base: str
    base_hash: str
    base_rows: int | None = None
    tokenizer: str | None = None
    label_kinds: tuple[str, ...] = ()
    versions: Mapping[str, str] | None = None
    divided_by: float = 1.0
    head_only: bool = False
    pooling: str = "last"
    inner_width: int = 0

    @classmethod
    def is_in(cls, source: str | Path) -> bool:
        """Return true for a folder of this project's reward models; others' have no card."""
        return (Path(source) / CARD).is_file()

    @classmethod
    def read(cls, folder: Path) -> tuple[Self, float]:
        """Return the card in `folder` and the bias; ValueError where a file or key is missing."""
        path = folder / CARD
        if not path.is_file():
            raise ValueError(f"{folder} is not a reward model: it has no {CARD}")
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            card = cls(
                base=row["base"],
                base_hash=row["base_hash"],
                base_rows=int(row["base_rows"]),
                tokenizer=row["tokenizer"],
                label_kinds=tuple(row["label_kinds"]),
                versions=row["versions"],
                divided_by=float(row.get("divided_by", 1.0)),
                head_only=bool(row.get("head_only", False)),
                pooling=str(row.get("pooling", "last")),
                inner_width=int(row.get("inner_width", 0)),
            )
            return card, float(row["bias"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the card of a reward model ({error!r})") from None

    def write(self, folder: Path, bias: float) -> None:
        """Write the card, the bias and the versions of the libraries that are running."""
        versions = {name: version(name) for name in LIBRARIES}
        write_json(folder / CARD, {"bias": bias, **asdict(replace(self, versions=versions))})

    def require_tokenizer(self, tokenizer: str, policy: str) -> None:
        """Raise ValueError unless the policy's tokenizer, by hash, is this model's own."""
        if self.tokenizer != tokenizer:
            own = "no tokenizer" if self.tokenizer is None else f"tokenizer {self.tokenizer[:12]}"
            raise ValueError(
                f"the reward model was trained from {own}, {policy} uses {tokenizer[:12]}: "
                "a reward model must read what the policy writes"
            )
