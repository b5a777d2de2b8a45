"""Scores of whole responses by a reward model, in batches of similar length.

Dimension key:  B sequences,  L tokens.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from reward_models.backbone import transformer
from reward_models.context_limit import ContextLimit, hard_position_limit
from reward_models.model import RewardModel
from reward_models.records import Prompt
from stages.data.padding import pad_right, positions
from stages.data.template import conversation_ids, response_ids
from stages.progress import Report, Step, silent

MOST_ROWS = 64  # read at once
_CACHED = 2**21  # numbers; a Llama of 135 M parameters scores 1.4 times as quickly as in 64 rows


def score_responses(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    batch_size: int | None = None,
    ended: Sequence[bool] | None = None,
    report: Report = silent,
) -> list[float]:
    """The score of each response to its prompt. `ended` tells which end with EOS; None: all do."""
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
    """The score of each sequence of token ids, prompt and response together, in the order given.

    Without a `batch_size` as many are read at once as is quick on the model's device. `report` is
    given the number of those that are scored.
    """
    lengths = [len(sequence) for sequence in sequences]
    room = ContextLimit("the reward model", hard_position_limit(transformer(model.backbone).config))
    room.require(max(lengths, default=0), "the longest prompt with its response")
    device = model.head.weight.device
    if batch_size is None:
        batches = batches_of(lengths, model.head.in_features, MOST_ROWS, device)
    else:
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    scores, done = [0.0] * len(sequences), 0
    with torch.no_grad():
        for places in batches:
            ids_BL, mask_BL = pad_right([sequences[place] for place in places], pad_id=0)
            ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
            reward_B = model(ids_BL, mask_BL, positions(mask_BL))
            for place, score in zip(places, reward_B.tolist(), strict=True):
                scores[place] = score
            done += len(places)
            report(Step(done, len(scores)))
    return scores


def batches_of(
    lengths: Sequence[int], width: int, most: int, device: torch.device
) -> list[list[int]]:
    """Places in batches of similar length, each of at most `most` rows.

    On a CPU a batch's states of one layer, rows * longest * `width` numbers, are bounded too: more
    do not fit into its cache.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows = len(batches[-1]) + 1 if batches else 1
        is_small = device.type != "cpu" or rows * lengths[place] * width <= _CACHED
        if batches and rows <= most and is_small:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
