"""Any sequence classifier as a scorer, through AutoModelForSequenceClassification.

Detoxify-style models have several labels at once (a sigmoid each), others exclude one another
(softmax). The toxic label is found by its name, or named by the user.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.config.evaluation import ClassifierConfig
from pipeline.evaluation.samples.records import Completion, Scores
from reward_models.model_files import LOAD_ERRORS, check_source, first_line
from stages.models import device

Activation = Literal["sigmoid", "softmax"]
TOXIC = ("toxicity", "toxic", "hate", "offensive", "hateful", "unsafe", "abusive")


@dataclass(frozen=True, slots=True)
class SequenceClassifier:
    """A model with its tokenizer; `labels` in the order of its outputs."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    activation: Activation
    max_tokens: int

    @classmethod
    def load(
        cls, name: str, activation: Activation | None = None, max_tokens: int = 512
    ) -> "SequenceClassifier":
        """Load a folder or a model of the hub; raise ValueError where it is no classifier."""
        check_source(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModelForSequenceClassification.from_pretrained(name)
        except LOAD_ERRORS as error:
            raise ValueError(f"{name}: no classifier to be had ({first_line(error)})") from None
        model.to(device()).eval()
        labels = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
        several = model.config.problem_type == "multi_label_classification" or len(labels) == 1
        length = min(max_tokens, tokenizer.model_max_length)
        activation = activation or ("sigmoid" if several else "softmax")
        return cls(model, tokenizer, labels, activation, length)

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """Return a row a text, a column a label. With `pairs`, text and pair are one input."""
        batch = self.tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            padding=True,
            max_length=self.max_tokens,
            return_tensors="pt",
            truncation="longest_first" if pairs is None else "only_first",
        ).to(device())
        with torch.inference_mode():
            logits_BC: Tensor = self.model(**batch).logits.float().cpu()
        return logits_BC.sigmoid() if self.activation == "sigmoid" else logits_BC.softmax(-1)

    def column(self, label: str | None, names: Sequence[str], meaning: str) -> int:
        """Return the column of `label`, or of the one label with one of `names`."""
        lower = [each.lower() for each in self.labels]
        if label is not None and label.lower() in lower:
            return lower.index(label.lower())
        columns = [column for column, name in enumerate(lower) if name in names]
        if label is None and (len(columns) == 1 or len(lower) == 1):
            return columns[0] if columns else 0
        if label is None and columns and self.activation == "sigmoid":
            return min(columns, key=lambda column: names.index(lower[column]))
        raise ValueError(
            f"which label says {meaning}? Expected label, one of {', '.join(self.labels)}"
            + (f"; found '{label}'" if label is not None else "")
        )

    def sha256(self) -> str:
        """Return the hash of names and values of the weights."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def version(self) -> str:
        """Return the model's name and, of one of the hub, its commit."""
        commit = vars(self.model.config).get("_commit_hash")
        return f"{self.model.config.name_or_path}" + (f"@{commit[:12]}" if commit else "")


class ToxicityClassifier:
    """A classifier's probability that a completion is toxic, and of its other labels."""

    def __init__(self, config: ClassifierConfig) -> None:
        """Load the model; raise ValueError if it is not there or no label is the toxic one."""
        self.config = config
        self.classifier = SequenceClassifier.load(
            config.model, config.activation, config.max_tokens
        )
        self.column = self.classifier.column(config.label, TOXIC, "toxic")
        self.name = Path(config.model).name
        self.version, self.sha256 = self.classifier.version(), self.classifier.sha256()
        self.threshold = config.threshold

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return `toxicity` in 0..1 of the completion alone; of several labels, each by name."""
        scores: list[Scores] = []
        for start in range(0, len(rows), self.config.batch_size):
            batch = rows[start : start + self.config.batch_size]
            chance_BC = self.classifier.probabilities([row.completion for row in batch])
            scores += [self._scores(chance_C) for chance_C in chance_BC.tolist()]
        return scores

    def _scores(self, chance_C: list[float]) -> Scores:
        others = self.classifier.labels if self.classifier.activation == "sigmoid" else ()
        named = {label: chance_C[i] for i, label in enumerate(others) if i != self.column}
        return {"toxicity": chance_C[self.column], **named}
