"""With two responses a prompt, loss and gradients are those of TRL's pairwise RewardTrainer."""

import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from reward_models.model import RewardModel
from reward_models.ranking_loss import ranking_loss
from reward_models.records import Ranking, RankingTask
from stages.reward.batches import RankedPrompt, ranked_prompts
from stages.reward.shared_prompt import Layout, SeparateRows, SharedPrompt
from tests.reward_models.tiny import tiny_base, tiny_tasks, tiny_tokenizer

pytestmark = pytest.mark.slow  # importing TRL's trainers takes ten seconds


def pairs() -> list[RankedPrompt]:
    """Eight prompts with two responses each, the better one first or second."""
    rng = random.Random(0)
    tasks = [RankingTask(one.id, one.prompt, one.responses[:2]) for one in tiny_tasks(8, rng)]
    orders = [{"r0": 1, "r1": 2}, {"r0": 2, "r1": 1}]
    rankings = [Ranking(one.id, "ann", "human", rng.choice(orders)) for one in tasks]
    return ranked_prompts(tiny_tokenizer(), tasks, rankings, max_tokens=64)[0]


def trl_loss_and_gradient(base: Path, model: RewardModel, folder: Path) -> dict[str, torch.Tensor]:
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

    classifier = AutoModelForSequenceClassification.from_pretrained(
        str(base), num_labels=1, dtype=torch.float32, attention_dropout=0.0
    )
    classifier.score.weight.data.copy_(model.head.weight.data)
    rows = []
    for element in pairs():
        better = element.ranks[0].index(1)
        whole = [list(element.prompt + response) for response in element.responses]
        rows.append({"chosen_ids": whole[better], "rejected_ids": whole[1 - better]})
    trainer = RewardTrainer(
        classifier,
        RewardConfig(str(folder), report_to="none", use_cpu=True, gradient_checkpointing=False),
        train_dataset=Dataset.from_list([{"chosen": "w1 good", "rejected": "w1 bad"}]),
        processing_class=tiny_tokenizer(),
    )
    batch = DataCollatorForPreference(pad_token_id=0).torch_call(rows)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    actual = {
        name.removeprefix("model."): parameter.grad
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }
    return actual | {"loss": loss.detach()}


def our_loss_and_gradient(model: RewardModel, layout: Layout) -> dict[str, torch.Tensor]:
    batch = layout.collate(pairs())
    model.zero_grad()
    scores_BK = layout.scores(model, batch)
    loss = ranking_loss(scores_BK, batch["rank_BAK"])
    loss.backward()
    actual = {
        name.removeprefix("backbone.").replace("head.", "score."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return actual | {"loss": loss.detach()}


def test_two_responses_equal_trl_s_reward_trainer_in_loss_and_gradients(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    model = RewardModel.from_base(base, seed=0)
    theirs = trl_loss_and_gradient(base, model, tmp_path)
    for layout in (SharedPrompt(), SeparateRows()):
        ours = our_loss_and_gradient(model, layout)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.allclose(ours[name], value, rtol=1e-5, atol=1e-6), name
