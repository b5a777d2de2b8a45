"""Scores of whole responses by a reward model, in batches of similar length.

Dimension key:  B sequences,  L tokens.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from reward_models.model import RewardModel
from reward_models.positions import Room, table_of
from reward_models.records import Prompt
from reward_models.trunk import transformer
from stages.data.padding import pad_right, positions
from stages.data.template import conversation_ids, response_ids


def score_responses(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    batch_size: int = 64,
    ended: Sequence[bool] | None = None,
) -> list[float]:
    """The score of each response to its prompt. `ended` tells which end with EOS; None: all do."""
    if ended is None:
        ended = [True] * len(responses)
    sequences = [
        conversation_ids(tokenizer, prompt) + response_ids(tokenizer, response, ended=end)
        for prompt, response, end in zip(prompts, responses, ended, strict=True)
    ]
    return score_sequences(model, sequences, batch_size=batch_size)


def score_sequences(
    model: RewardModel, sequences: Sequence[Sequence[int]], *, batch_size: int = 64
) -> list[float]:
    """The score of each sequence of token ids, prompt and response together, in the order given."""
    order = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
    scores = [0.0] * len(sequences)
    if sequences:
        room = Room("the reward model", table_of(transformer(model.carrier).config))
        room.require(len(sequences[order[-1]]), "the longest prompt with its response")
    device = model.head.weight.device
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            ids_BL, mask_BL = pad_right([sequences[place] for place in places], pad_id=0)
            ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
            reward_B = model(ids_BL, mask_BL, positions(mask_BL))
            for place, score in zip(places, reward_B.tolist(), strict=True):
                scores[place] = score
    return scores
