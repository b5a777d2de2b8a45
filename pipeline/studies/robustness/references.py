"""Similarity of answers to references: ROUGE-L, BLEU, and the reference's own likelihood.

ROUGE-L is the F measure of the longest common subsequence (Lin 2004, by rouge-score, with stemming
off), the best over a prompt's references. BLEU is the corpus's (Papineni et al. 2002, by
sacrebleu). The likelihood is the nats per token that the policy needs for the first reference.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.evaluation.samples.records import Completion, Scores
from pipeline.studies.robustness.config import REFERENCES
from reward_models.records import Demonstration
from stages.data.supervised import encode, response_loss

ROUGE, LIKELIHOOD = "rouge-score", "the policy itself"


class RougeL:
    """Scores rows whose prompts have references; 0 to 1."""

    name = ROUGE
    threshold = None
    sha256 = ""

    def __init__(self) -> None:
        from importlib.metadata import version

        from rouge_score.rouge_scorer import RougeScorer

        self.version = version("rouge-score")
        self._scorer = RougeScorer(["rougeL"])

    def score(self, rows: Sequence[Completion]) -> list[Scores]:
        """Return `rouge_l` of each row."""
        return [
            {"rouge_l": self._scorer.score_multi(_texts(row), row.completion)["rougeL"].fmeasure}
            for row in rows
        ]


def corpus_bleu(
    rows: Sequence[Completion], *, resamples: int, seed: int
) -> tuple[float, tuple[float, float]]:
    """Return BLEU of all rows together, 0 to 100, with a 95 % interval over resampled rows.

    BLEU is a function of n-gram counts that are summed over rows, so resampling sums them anew.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(effective_order=True)  # concerns single rows, whose own score is not used
    scores = [metric.sentence_score(row.completion, _texts(row)) for row in rows]
    order = len(scores[0].counts)
    counts_NC = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in scores])

    def bleu(sum_C: NDArray[np.int64]) -> float:
        sums = sum_C.tolist()
        lengths = {"sys_len": sums[-2], "ref_len": sums[-1]}
        matches, totals = sums[:order], sums[order : 2 * order]
        return float(BLEU.compute_bleu(matches, totals, smooth_method="exp", **lengths).score)

    rng = np.random.default_rng(seed)
    num = len(rows)
    drawn = [bleu(counts_NC[rng.integers(0, num, num)].sum(0)) for _ in range(resamples)]
    value = bleu(counts_NC.sum(0))
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (value, value)
    return value, (float(low), float(high))


def reference_nats(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Completion]
) -> list[Scores]:
    """Return nats per token of each row's first reference after its prompt."""
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    scores: list[Scores] = []
    for row in rows:
        first = Demonstration(row.prompt, _texts(row)[0], context=row.context, history=row.history)
        loss = response_loss(model, [encode(tokenizer, first)], pad, batch_size=1)
        scores.append({"nats_per_token": loss})
    return scores


def _texts(row: Completion) -> list[str]:
    return [str(text) for text in row.prompt_extra[REFERENCES]]
