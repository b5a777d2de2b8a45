"""Reward-model steps of this project:  python -m tests.benchmarks.reward.layouts FOLDER LAYOUT.

LAYOUT is `shared` (a prompt is computed once for its K responses) or `separate` (K whole passes).
One step is forward, loss over all pairs, backward and AdamW on one prompt with its K responses.
"""

import sys
from pathlib import Path

import torch

from reward_models.model import RewardModel
from reward_models.ranking_loss import ranking_loss
from stages.reward.shared_prompt import SeparateRows, SharedPrompt
from tests.benchmarks.reward.case import RewardCase, ranked_prompt
from tests.benchmarks.worker import Meter, step_protocol


def main(folder: Path, name: str) -> None:
    """Steps until nobody asks any more."""
    send, wait_for_go = step_protocol()
    torch.set_num_threads(1)
    case = RewardCase.read(folder / "case.json")
    layout = SharedPrompt() if name == "shared" else SeparateRows()
    model = RewardModel.from_base(folder / "policy", seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    send({"ready": True})
    turn = 0
    while wait_for_go():
        batch = layout.collate([ranked_prompt(case, seed=turn)])
        meter = Meter()
        loss = ranking_loss(layout.scores(model, batch), batch["rank_BAK"])
        torch.autograd.backward(loss)
        took = meter.read()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in model.parameters() if p.grad is not None]
        )
        meter.read()
        optimizer.step()
        optimizer.zero_grad()
        last = meter.read()
        turn += 1
        total = {key: took[key] + last[key] for key in ("wall_s", "cpu_s")}
        send({**last, **total, "loss": loss.item(), "gradient_norm": norm.item()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
