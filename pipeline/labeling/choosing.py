"""The order in which people get the tasks of a room, by what a reward model does not know yet.

The features of all outputs are computed once, by the reward model that the config names. Linear
heads on them are fitted to the rankings so far (`selection.py`), and the store gets the order of
the next tasks; both again after every few rankings, which takes a second. A fifth of the tasks is
reserved by a hash of its id: these come in order of arrival, whatever is known, and only they are
held out, so that an accuracy over them is one over all tasks.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from labeling_ui.store.store import Store
from pipeline.labeling.selection import Floats, Heads, fit_heads, order_tasks, scaled
from reward_models.records import Ranking, RankingTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reward_models.model import RewardModel

RANDOM_SHARE = 0.2  # of the tasks
LEAST = 10  # rankings before the first choice
EVERY = 20  # rankings from one choice to the next
AHEAD = 60  # tasks put in order at a time


@dataclass
class Chooser:
    """Keeps a store's tasks in order while people rank them."""

    tasks: Sequence[RankingTask]
    features: Sequence[Floats]  # of `scaled`
    num_rankings: int = -EVERY  # at the last choice

    def refresh(self, store: Store) -> bool:
        """Order the open tasks again, if enough was ranked since; return true if it did."""
        rankings = store.rankings()
        if len(rankings) < LEAST or len(rankings) < self.num_rankings + EVERY:
            return False
        self.num_rankings = len(rankings)
        done = {ranking.task for ranking in rankings}
        left = [number for number, task in enumerate(self.tasks) if task.id not in done]
        reserved = [i for i, number in enumerate(left) if is_reserved(self.tasks[number].id)]
        choices = order_tasks(
            self.heads(rankings),
            [self.features[number] for number in left],
            AHEAD,
            reserved=reserved,
            random_share=RANDOM_SHARE,
            rng=random.Random(f"choose/{len(rankings)}"),
        )
        first = [self.tasks[left[choice.task]].id for choice in choices]
        store.set_order({task: float(len(first) - i) for i, task in enumerate(first)})
        return True

    def heads(self, rankings: Sequence[Ranking]) -> Heads:
        """Return the heads after these rankings."""
        numbers = {task.id: number for number, task in enumerate(self.tasks)}
        gaps = [np.zeros((0, self.features[0].shape[1]))]
        for ranking in rankings:
            if ranking.task in numbers:
                task = self.tasks[numbers[ranking.task]]
                rows = dict(
                    zip(
                        (r.id for r in task.responses),
                        self.features[numbers[ranking.task]],
                        strict=True,
                    )
                )
                gaps += [(rows[a] - rows[b])[None] for a, b in ranking.comparisons()]
        return fit_heads(np.concatenate(gaps))


def is_reserved(task: str) -> bool:
    """Return true for a task that comes at random, whatever is known about it."""
    return random.Random(f"reserved/{task}").random() < RANDOM_SHARE


def marked(tasks: Sequence[RankingTask]) -> list[RankingTask]:
    """Return the tasks, each with `drawn`: random or chosen; none of the chosen is held out."""
    return [
        replace(task, extra={**task.extra, "drawn": "random" if is_reserved(task.id) else "chosen"})
        for task in tasks
    ]


def chooser(folder: str, tasks: Sequence[RankingTask]) -> Chooser:
    """Return the chooser of these tasks by the reward model in a folder."""
    from reward_models.model import RewardModel
    from stages.models import load_tokenizer
    from stages.precision import inference_weights

    model, tokenizer = RewardModel.load(folder, weights=inference_weights()), load_tokenizer(folder)
    return Chooser(tasks, scaled(response_features(model, tokenizer, tasks)))


def response_features(
    model: "RewardModel", tokenizer: "PreTrainedTokenizerBase", tasks: Sequence[RankingTask]
) -> list[Floats]:
    """Return the head's inputs for the outputs of each task, (K, D)."""
    import torch

    from stages.data.padding import pad_right, positions
    from stages.data.template import conversation_ids, response_ids
    from stages.generation.score import MAX_ROWS, batches_of

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
