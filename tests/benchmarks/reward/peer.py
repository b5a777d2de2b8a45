"""TRL's RewardTrainer on all pairs of a ranking:  python -m tests.benchmarks.reward.peer FOLDER.

It knows pairs only, so a ranking of K responses is K(K-1)/2 examples. They go through in batches of
`pairs_at_once`, gradients added up, then one step of AdamW: the same update as ours.
"""

import sys
from itertools import combinations
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from reward_models.model import RewardModel
from stages.reward.batches import RankedPrompt
from tests.benchmarks.cases import PAD, tokenizer
from tests.benchmarks.reward.case import RewardCase, ranked_prompt
from tests.benchmarks.worker import Meter, step_protocol


def main(folder: Path) -> None:
    """Steps until nobody asks any more."""
    send, wait_for_go = step_protocol()
    torch.set_num_threads(1)
    case = RewardCase.read(folder / "case.json")
    model = AutoModelForSequenceClassification.from_pretrained(
        str(folder / "policy"), num_labels=1, pad_token_id=PAD, dtype=torch.float32
    )
    with torch.no_grad():
        model.score.weight.copy_(RewardModel.from_base(folder / "policy", seed=0).head.weight)
    trainer = RewardTrainer(
        model,
        RewardConfig(
            str(folder / "peer"),
            report_to="none",
            use_cpu=True,
            gradient_checkpointing=False,
            bf16=False,
            center_rewards_coefficient=None,
        ),
        train_dataset=Dataset.from_list([{"chosen": "w3 w4", "rejected": "w3 w5"}]),
        processing_class=tokenizer(case.shape.vocabulary),
    )
    collate = DataCollatorForPreference(pad_token_id=PAD)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    send({"ready": True})
    turn = 0
    while wait_for_go():
        rows = _pairs(ranked_prompt(case, seed=turn))
        batches = [
            collate.torch_call(rows[start : start + case.pairs_at_once])
            for start in range(0, len(rows), case.pairs_at_once)
        ]
        meter, loss = Meter(), 0.0
        for batch in batches:
            share = len(batch["input_ids"]) / 2 / len(rows)
            part = trainer.compute_loss(trainer.model, batch) * share
            part.backward()
            loss += part.item()
        took = meter.read()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        meter.read()
        optimizer.step()
        optimizer.zero_grad()
        last = meter.read()
        turn += 1
        total = {key: took[key] + last[key] for key in ("wall_s", "cpu_s")}
        send({**last, **total, "loss": loss, "gradient_norm": norm.item()})


def _pairs(element: RankedPrompt) -> list[dict[str, list[int]]]:
    """Every two responses, the better one chosen."""
    whole = [element.prompt + response for response in element.responses]
    order = sorted(range(len(whole)), key=element.ranks[0].__getitem__)
    return [
        {"chosen_ids": list(whole[better]), "rejected_ids": list(whole[worse])}
        for better, worse in combinations(order, 2)
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
