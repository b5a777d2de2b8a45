"""Scores of whole responses by a reward model, in batches of similar length.

Dimension key:  B sequences,  L tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from reward_models.backbone import transformer
from reward_models.context_limit import ContextLimit, context_limit, hard_position_limit
from reward_models.model import RewardModel
from reward_models.model_card import RewardCard
from reward_models.records import Prompt
from reward_models.weights.formats import FLOAT32, WeightFormat
from stages.data.padding import pad_right, positions
from stages.data.template import conversation_ids, response_ids, response_text, with_trained_end
from stages.generation.classifier import (
    SequenceClassifier,
    check_classifier,
    load_sequence_classifier,
)
from stages.generation.generate import Sampled
from stages.models import load_tokenizer, tokenizer_hash
from stages.progress import Report, Step, silent

MAX_ROWS = 64
_CACHED = 2**21  # numbers; a Llama of 135 M parameters scores 1.4 times as quickly as in 64 rows


Scorer = RewardModel | SequenceClassifier


def load_scorer(source: str | Path, weights: WeightFormat = FLOAT32) -> Scorer:
    """Load a reward model of this project, or any other sequence classifier with one label."""
    if RewardCard.is_in(source):
        return RewardModel.load(source, weights=weights)
    return load_sequence_classifier(source, weights)


def check_scorer(source: str | Path) -> None:
    """Raise ValueError for a source that `load_scorer` would refuse, without loading weights."""
    if RewardCard.is_in(source):
        RewardCard.read(Path(source))
    else:
        check_classifier(source)


def scorer_tokenizer(model: Scorer, source: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model that `load_scorer` loaded from `source`."""
    return load_tokenizer(source) if isinstance(model, RewardModel) else model.tokenizer


def require_readable(model: Scorer, tokenizer: PreTrainedTokenizerBase, policy: str | Path) -> None:
    """Raise ValueError where a reward model that scores token ids has another tokenizer."""
    if isinstance(model, RewardModel):
        model.card.require_tokenizer(tokenizer_hash(tokenizer), str(policy))


def scorer_limits(source: str | Path) -> list[ContextLimit]:
    """Return the positions of a reward model that scores the policy's tokens; none of another."""
    return [context_limit(source)] if RewardCard.is_in(source) else []


def score_sampled(
    model: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[list[int]],
    answers: Sequence[Sampled],
    *,
    batch_size: int | None = None,
) -> list[float]:
    """Return the score of each answer to its prompt, which is given as a record and as ids."""
    if isinstance(model, RewardModel):
        sequences = [
            ids + with_trained_end(tokenizer, answer.ids, ended=answer.ended)
            for ids, answer in zip(prompt_ids, answers, strict=True)
        ]
        return score_sequences(model, sequences, batch_size=batch_size)
    responses = [response_text(tokenizer, answer.ids) for answer in answers]
    return score_texts(model, prompts, responses, batch_size=batch_size)


def score_responses(
    model: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    batch_size: int | None = None,
    ended: Sequence[bool] | None = None,
    report: Report = silent,
) -> list[float]:
    """Return the score of each response to its prompt; `ended` None: all end with EOS.

    A model with a tokenizer of its own takes each for a response that ended.
    """
    if isinstance(model, SequenceClassifier):
        return score_texts(model, prompts, responses, batch_size=batch_size, report=report)
    if ended is None:
        ended = [True] * len(responses)
    sequences = [
        conversation_ids(tokenizer, prompt) + response_ids(tokenizer, response, ended=end)
        for prompt, response, end in zip(prompts, responses, ended, strict=True)
    ]
    return score_sequences(model, sequences, batch_size=batch_size, report=report)


def score_sequences(
    model: RewardModel,
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int | None = None,
    report: Report = silent,
) -> list[float]:
    """Return the score of each sequence of token ids, prompt and response together, in this order.

    Without a `batch_size` batches are as large as is quick on the model's device.
    """
    lengths = [len(sequence) for sequence in sequences]
    room = ContextLimit("the reward model", hard_position_limit(transformer(model.backbone).config))
    room.require(max(lengths, default=0), "the longest prompt with its response")
    device = model.head.weight.device
    width = model.head.in_features if batch_size is None else 0
    batches = batches_of(lengths, width, batch_size or MAX_ROWS, device)

    def scores(batch: Sequence[int]) -> Tensor:
        ids_BL, mask_BL = pad_right([sequences[row] for row in batch], pad_id=0)
        ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
        reward_B: Tensor = model(ids_BL, mask_BL, positions(mask_BL))
        return reward_B

    return _in_batches(batches, scores, report)


def score_texts(
    model: SequenceClassifier,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    batch_size: int | None = None,
    report: Report = silent,
) -> list[float]:
    """Return the score of each response to its prompt by a model with a tokenizer of its own."""
    texts = [model.encode(*pair) for pair in zip(prompts, responses, strict=True)]
    width = model.width if batch_size is None else 0
    lengths = [len(text.ids) for text in texts]
    batches = batches_of(lengths, width, batch_size or MAX_ROWS, model.device)
    return _in_batches(batches, lambda batch: model([texts[row] for row in batch]), report)


def _in_batches(
    batches: Sequence[Sequence[int]],
    score: Callable[[Sequence[int]], Tensor],
    report: Report,
) -> list[float]:
    """Return the scores of all rows in their order, computed batch by batch."""
    scores, done = [0.0] * sum(map(len, batches)), 0
    with torch.no_grad():
        for batch in batches:
            for row, value in zip(batch, score(batch).tolist(), strict=True):
                scores[row] = value
            done += len(batch)
            report(Step(done, len(scores)))
    return scores


def batches_of(
    lengths: Sequence[int], width: int, max_rows: int, device: torch.device
) -> list[list[int]]:
    """Return indices in batches of similar length, each of at most `max_rows` rows.

    On a CPU a batch's states of one layer, rows * longest * `width` numbers, are bounded too (not
    with a width of 0): more do not fit into its cache.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows = len(batches[-1]) + 1 if batches else 1
        is_small = device.type != "cpu" or rows * lengths[row] * width <= _CACHED
        if batches and rows <= max_rows and is_small:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
