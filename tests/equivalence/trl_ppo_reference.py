"""Record what TRL 1.12.0's PPO trainer computes:  PYTHONPATH=FOLDER python trl_ppo_reference.py

FOLDER holds TRL 1.12.0, the last version with a PPO trainer (`make bench` puts it into
runs/benchmark/trl-1.12.0). Its own loop runs for one step of two epochs; a callback reads the
loop's variables where they stand, so nothing of it is written again here. The numbers go to
trl_ppo_reference.json beside this file.
"""

import copy
import inspect
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from tests.equivalence.trl_ppo_models import (
    END,
    KINDS,
    PAD,
    PROMPTS,
    RESPONSE,
    SETTINGS,
    VOCABULARY,
    classifier,
    language_model,
)

READ = [
    "query_responses",
    "postprocessed_responses",
    "logprobs",
    "ref_logprobs",
    "values",
    "scores",
    "kl",
    "rewards",
    "returns",
    "advantages",
    "padding_mask",
    "padding_mask_p1",
    "pg_loss_stats",
    "vf_loss_stats",
    "context_length",
]


class Reader(TrainerCallback):
    """At the end of the step: the variables of the loop that called."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}
        self.order: list[int] = []  # in which the last epoch took the episodes

    def on_step_end(self, *_: Any, **__: Any) -> None:
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_name != "train":
            frame = frame.f_back
        assert frame is not None
        self.results = {name: _plain(frame.f_locals[name]) for name in READ}
        self.order = frame.f_locals["micro_batch_inds"].tolist()


class Watched:
    """A function of TRL's that also remembers what it gave."""

    def __init__(self, function: Any) -> None:
        self.function, self.given = function, []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        result = self.function(*arguments, **named)
        self.given.append(result)
        return result


def _plain(x: Any) -> Any:
    return x.detach().tolist() if isinstance(x, torch.Tensor) else x


def tokenizer() -> PreTrainedTokenizerFast:
    """A word for every id."""
    words = {"<pad>": PAD, "<end>": END} | {f"w{n}": n for n in range(2, VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w2"))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", pad_token="<pad>", padding_side="left"
    )


def settings(folder: str, *, may_end: bool) -> PPOConfig:
    """One step: all episodes in one micro-batch, two epochs with a large rate."""
    return PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=len(PROMPTS),
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=2,
        local_rollout_forward_batch_size=len(PROMPTS),
        total_episodes=len(PROMPTS),
        response_length=RESPONSE,
        stop_token="eos" if may_end else None,
        temperature=1.0,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        vf_coef=1.0,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        **SETTINGS,
    )


def record(kind: str, *, may_end: bool) -> dict[str, Any]:
    """One step on one batch; with `may_end` responses are cut at the end token."""
    torch.manual_seed(0)
    reader = Reader()
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=settings(folder, may_end=may_end),
            processing_class=tokenizer(),
            model=language_model(kind, 1),
            ref_model=language_model(kind, 2),
            value_model=classifier(kind, 3),
            reward_model=classifier(kind, 4),
            train_dataset=Dataset.from_dict({"input_ids": copy.deepcopy(PROMPTS)}),
            callbacks=[reader],
        )
        picked = ppo_trainer.selective_log_softmax = Watched(ppo_trainer.selective_log_softmax)
        passed = ppo_trainer.forward = Watched(ppo_trainer.forward)
        try:
            trainer.train()
        finally:
            ppo_trainer.selective_log_softmax = picked.function
            ppo_trainer.forward = passed.function
    context = reader.results["context_length"]
    position = torch.tensor(reader.order).argsort()
    second_BT = passed.given[-1][1][:, context - 1 : -1].squeeze(-1)
    return {
        **reader.results,
        "second_logprobs": _plain(picked.given[-1][position]),
        "second_values": _plain(second_BT[position]),
    }


def main() -> None:
    """Both architectures, with and without responses that end early."""
    results = {
        f"{kind}, {'ending' if may_end else 'full length'}": record(kind, may_end=may_end)
        for kind in KINDS
        for may_end in (False, True)
    }
    about = {"trl": trl.__version__, "torch": torch.__version__}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"about": about, **results}) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
