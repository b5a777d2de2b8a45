"""The reward model as a scorer. PPO was trained to please it: never independent evidence."""

import hashlib
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

from pipeline.evaluation.samples.records import Completion, Scores
from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.generation.score import score_responses
from stages.models import device, load_tokenizer, tokenizer_hash

REWARD = "reward model"


class RewardScorer:
    """Scores of a reward model for the responses of policies that share its tokenizer."""

    name, threshold = REWARD, None

    def __init__(self, path: Path, policies: Collection[str | Path], batch_size: int = 64) -> None:
        """Load the model; raise ValueError if any policy has another tokenizer."""
        self.model = RewardModel.load(path).to(device())
        self.path, self.batch_size = path, batch_size
        for policy in policies:
            self.tokenizer = load_tokenizer(policy)
            self.model.card.require_tokenizer(tokenizer_hash(self.tokenizer), str(policy))

    @property
    def version(self) -> str:
        """The kind of labels it was trained on."""
        return " and ".join(self.model.card.label_kinds) + " labels"

    @cached_property
    def sha256(self) -> str:
        """The hash of its files and their names."""
        digest = hashlib.sha256()
        for path in sorted(self.path.rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return `score` of each response; an unfinished one is scored without EOS."""
        scores = score_responses(
            self.model,
            self.tokenizer,
            [Prompt(row.prompt, context=row.context, history=row.history) for row in rows],
            [row.completion for row in rows],
            batch_size=self.batch_size,
            ended=[row.ended for row in rows],
        )
        return [{"score": score} for score in scores]
