"""PPO steps of TRL 1.12.0, one for every "go":  python -m tests.benchmarks.ppo.peer FOLDER [all].

With "all", every layer moves where the case freezes the lower ones.

TRL dropped its PPO trainer after 1.12.0; it runs here from a folder of its own (see Makefile).
Its loop is left as it is: a callback at the end of each step waits for the next "go". Settings that
would slow it down without need - gradient checkpointing, debugging samples - are off.
"""

import copy
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from tests.benchmarks.cases import PAD, Case, load_policy_of, prompts, tokenizer
from tests.benchmarks.worker import Meter, step_protocol


class OneStepAtATime(TrainerCallback):  # type: ignore[misc]  # transformers' callbacks are untyped
    """Send the cost of a step and wait for the next one."""

    def __init__(self, send: Any, wait_for_go: Any) -> None:
        self.send, self.wait_for_go, self.meter = send, wait_for_go, Meter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.send({"ready": True})
        if not self.wait_for_go():
            sys.exit()
        self.meter = Meter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.send(self.meter.read())
        if not self.wait_for_go():
            sys.exit()
        self.meter = Meter()


def settings(case: Case, folder: Path) -> PPOConfig:
    """The case in TRL's words."""
    return PPOConfig(
        output_dir=str(folder / "peer"),
        per_device_train_batch_size=case.micro,
        gradient_accumulation_steps=case.episodes // case.micro,
        num_mini_batches=case.episodes // case.minibatch,
        local_rollout_forward_batch_size=case.micro,
        total_episodes=10**6 // case.episodes * case.episodes,
        num_ppo_epochs=case.inner_epochs,
        response_length=case.response_limit,
        stop_token=None if case.mean_response is None else "eos",
        temperature=1.0,
        learning_rate=case.learning_rate,
        kl_coef=0.05,
        vf_coef=1.0,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=case.device == "cuda",
        use_cpu=case.device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_steps=10**9,
        disable_tqdm=True,
        seed=0,
    )


def freeze_below(model: Any, top: int) -> None:
    """Let the last `top` layers move alone, and a value model's head."""
    model.requires_grad_(False)
    for layer in model.model.layers[-top:]:
        layer.requires_grad_(True)
    if isinstance(model, LlamaForSequenceClassification):
        model.score.requires_grad_(True)


def main(folder: Path, *, everything: bool) -> None:
    """Steps until nobody asks any more."""
    send, wait_for_go = step_protocol()
    torch.set_num_threads(1)
    case = Case.read(folder / "case.json")
    words = tokenizer(case.shape.vocabulary)
    policy = load_policy_of(folder / "policy")
    value = AutoModelForSequenceClassification.from_pretrained(
        str(folder / "policy"), num_labels=1, pad_token_id=PAD
    )
    adapter = None
    if case.lora_rank is not None:
        adapter = LoraConfig(
            r=case.lora_rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    reference = None if adapter else copy.deepcopy(policy)
    reward = copy.deepcopy(value)
    if case.top_layers is not None and not everything:
        freeze_below(policy, case.top_layers)
        freeze_below(value, case.top_layers)
    given = prompts(case, 64 * case.episodes)
    trainer = PPOTrainer(
        args=settings(case, folder),
        processing_class=words,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": given}),
        callbacks=[OneStepAtATime(send, wait_for_go)],
        peft_config=adapter,
    )
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), everything="all" in sys.argv[2:])
