"""TRL's SFTTrainer on token ids of ours: its batches, what validates, what a checkpoint holds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast

from datasets import Dataset
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from stages.adaptation.probe import ProbeLayer
from stages.checkpoints import AtomicCheckpoints
from stages.data.supervised import Example, collate, response_loss
from stages.models import write_base
from stages.progress import Report, Step
from stages.sft_selection import drop_resume_state, epoch_checkpoints

_METRICS = {
    "loss": "sft/loss_nats_per_token",
    "mean_token_accuracy": "sft/token_accuracy",
    "entropy": "sft/entropy_nats",
    "grad_norm": "sft/gradient_norm",
    "learning_rate": "sft/learning_rate",
    "epoch": "sft/epoch",
    "eval_loss": "sft/validation_loss_nats_per_token",
}


class SupervisedTrainer(AtomicCheckpoints, SFTTrainer):
    """TRL's trainer with complete checkpoints, all kept, and an exact validation loss."""

    keep_all_checkpoints = True
    held_out: Sequence[Example] = ()

    @classmethod
    def on(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: SFTConfig,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        report: Report,
    ) -> Self:
        """A trainer of `model` on the examples; `held_out` may be empty if nothing is evaluated."""
        with _probe_taken_for_a_head(model):
            trainer = cls(
                model=model,
                args=arguments,
                data_collator=Collator(tokenizer),
                train_dataset=_rows(examples),
                eval_dataset=_rows(held_out) if held_out else None,
                processing_class=tokenizer,
                callbacks=[Listener(report), KeepWeights()],
            )
        trainer.held_out = held_out
        trainer.remove_callback(PrinterCallback)  # it prints to stdout
        return trainer

    def evaluate(
        self,
        eval_dataset: object = None,  # noqa: ARG002 - Trainer's signature
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The mean over all validation tokens (Trainer's would be a mean of batches' means)."""
        loss = response_loss(
            cast(PreTrainedModel, self.model),
            self.held_out,
            cast(Collator, self.data_collator).pad_id,
            batch_size=self.args.per_device_eval_batch_size,
        )
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(metrics)
        return metrics

    def create_model_card(self, *_: object, **__: object) -> None:
        """Write none: a run's manifest says more."""

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and output_dir is not None:
            write_base(cast(PreTrainedModel, self.model), Path(output_dir))

    def _send_telemetry(self) -> None:
        """Tell no hub that someone trains."""


class Collator:
    """From rows of the data set to a batch; PAD is the tokenizer's."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pad_id = cast(int, tokenizer.pad_token_id)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch that `collate` makes of them."""
        return collate([Example(row["ids"], row["response_start"]) for row in rows], self.pad_id)


class Listener(TrainerCallback):
    """Hands what Trainer logs to `report`, under the project's names."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Report what was logged, except what has no name here."""
        named = {
            _METRICS[name]: float(value) for name, value in (logs or {}).items() if name in _METRICS
        }
        if state.is_world_process_zero:
            self.report(Step(state.global_step, state.max_steps, named))


class KeepWeights(TrainerCallback):
    """Leaves what resuming needs in the newest two checkpoints only: one may be damaged."""

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - Trainer's signature
        **_: object,
    ) -> None:
        """Thin every checkpoint but the one just saved and the one before it."""
        if state.is_world_process_zero:
            for checkpoint in epoch_checkpoints(Path(str(args.output_dir)))[:-2]:
                drop_resume_state(checkpoint)


@contextmanager
def _probe_taken_for_a_head(model: PreTrainedModel) -> Iterator[None]:
    """TRL refuses adapters on the unembedding, whose matrix it reads; a probe's gives what acts."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, ProbeLayer):
        yield
        return
    vars(model)["get_output_embeddings"] = head.get_base_layer
    try:
        yield
    finally:
        del vars(model)["get_output_embeddings"]


def _rows(examples: Sequence[Example]) -> Dataset:
    return Dataset.from_list([asdict(example) for example in examples])
