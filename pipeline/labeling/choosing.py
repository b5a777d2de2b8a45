"""Features of a task's outputs for the choice of what to rank next."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from pipeline.labeling.selection import Floats
from reward_models.model import RewardModel
from reward_models.records import RankingTask
from stages.data.padding import pad_right, positions
from stages.data.template import conversation_ids, response_ids
from stages.generation.score import MAX_ROWS, batches_of


def response_features(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[RankingTask]
) -> list[Floats]:
    """Return the head's inputs for the outputs of each task, (K, D)."""
    rows = [
        conversation_ids(tokenizer, task) + response_ids(tokenizer, one.text, ended=one.ended)
        for task in tasks
        for one in task.responses
    ]
    device, width = model.head.weight.device, model.head.in_features
    states = np.zeros((len(rows), width))
    with torch.no_grad():
        for batch in batches_of([len(row) for row in rows], width, MAX_ROWS, device):
            ids_BL, mask_BL = pad_right([rows[number] for number in batch], pad_id=0)
            ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
            states[batch] = model.states(ids_BL, mask_BL, positions(mask_BL)).float().cpu().numpy()
    ends = np.cumsum([len(task.responses) for task in tasks])
    return np.split(states, ends[:-1])
