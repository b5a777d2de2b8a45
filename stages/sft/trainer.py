"""TRL's SFTTrainer on token ids of ours: batches, exact validation loss, complete checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Sampler
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

from reward_models.weights.formats import FLOAT32, WeightFormat
from stages.adapters.probe import ProbeLayer
from stages.data.supervised import Example, check_trained_loss, collate, response_loss
from stages.distributed.checkpoints import ASIDE, AtomicCheckpoints
from stages.distributed.optimizers import PLAIN, AdamKind
from stages.distributed.state import let_models_load_whole
from stages.models import base_record, load_policy, write_base_record
from stages.progress import Report, Step, silent
from stages.sft.compat import (
    adapters_left_float32,
    router_coefficient_restored,
    unembedding_of,
)
from stages.sft.selection import drop_resume_state, epoch_checkpoints
from stages.training_arguments import trainer_optimizer

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
    """TRL's trainer with complete checkpoints, none removed, and an exact validation loss."""

    keep_all_checkpoints = True
    held_out: Sequence[Example] = ()
    base_record: Mapping[str, object] | None = None  # of an adapter, made while its base was whole
    weights: WeightFormat = FLOAT32  # of the model that checkpoints are loaded into
    order: Sampler[int] | None = None
    report: Report = staticmethod(silent)

    @classmethod
    def on(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: SFTConfig,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        report: Report,
        kind: AdamKind = PLAIN,
        weights: WeightFormat = FLOAT32,
    ) -> Self:
        """Return a trainer of `model`; `held_out` may be empty if nothing is validated."""
        at_once = arguments.per_device_train_batch_size * arguments.world_size
        order = ShuffledThenBlank(
            len(examples),
            arguments.seed,
            multiple_of=at_once if arguments.world_size > 1 else 1,
        )
        blank = Example([cast(int, tokenizer.eos_token_id)], 1)  # no response, so no loss
        record = base_record(model) if isinstance(model, PeftModel) else None
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        matrix = head.get_base_layer() if isinstance(head, ProbeLayer) else head
        with (
            unembedding_of(model, matrix),
            router_coefficient_restored(model),
            adapters_left_float32(model),
        ):
            trainer = cls(
                model=model,
                args=arguments,
                data_collator=Collator(tokenizer),
                train_dataset=_rows([*examples, *[blank] * order.num_blanks]),
                eval_dataset=_rows(held_out) if held_out else None,
                processing_class=tokenizer,
                callbacks=[MetricsCallback(report), ThinCheckpoints()],
                optimizer_cls_and_kwargs=trainer_optimizer(kind, arguments),
            )
        let_models_load_whole()  # its weights are not sharded yet
        check_trained_loss(
            cast(PreTrainedModel, trainer.model), examples[0], Collator(tokenizer).pad_id
        )
        trainer.held_out, trainer.order, trainer.base_record = held_out, order, record
        trainer.report, trainer.weights = report, weights
        trainer.remove_callback(PrinterCallback)  # it prints to stdout
        return trainer

    def train_remaining(self, epochs: int) -> None:
        """Train the epochs that follow the newest whole checkpoint."""
        newest = self.newest_checkpoint()
        if len(epoch_checkpoints(Path(str(self.args.output_dir)))) < epochs:
            self.train(resume_from_checkpoint=newest)

    def evaluate(
        self,
        eval_dataset: object = None,  # noqa: ARG002 - Trainer's signature
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return the mean over all validation tokens (Trainer's would be a mean of batches')."""
        if self.is_world_process_zero():
            doing = f"validating on {len(self.held_out)} demonstrations"
            self.report(Step(self.state.global_step, self.state.max_steps, doing=doing))
        loss = response_loss(
            cast(PreTrainedModel, self.reader),
            self.held_out,
            cast(Collator, self.data_collator).pad_id,
            batch_size=self.args.per_device_eval_batch_size,
        )
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(metrics)
        return metrics

    def create_model_card(self, *_: object, **__: object) -> None:
        """Write none: a run's manifest says more."""

    def weights_in(self, checkpoint: Path) -> Mapping[str, Tensor]:
        """Return those of the policy that the checkpoint holds."""
        return dict(load_policy(checkpoint, weights=self.weights).named_parameters())

    def write_model(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Write the policy; `weights`, where given, are the trained parameters, whole."""
        if weights is not None and self.base_record is None:
            weights = _with_all_names(cast(PreTrainedModel, self.model), weights)
        super().write_model(folder, weights)
        if self.base_record is not None:
            is_aside = folder.parent.name == ASIDE
            final = folder.parent.parent / folder.name if is_aside else folder
            write_base_record(folder, self.base_record, final)

    def train_order(self) -> Sampler[int] | None:
        """Return the order of the examples."""
        return self.order


class Collator:
    """From rows of the data set to a batch; PAD is the tokenizer's."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pad_id = cast(int, tokenizer.pad_token_id)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the batch that `collate` makes of them."""
        return collate([Example(row["ids"], row["response_start"]) for row in rows], self.pad_id)


class ShuffledThenBlank(Sampler[int]):
    """A random order each epoch, filled up with blanks to a multiple of the ranks' micro-batches.

    Left to itself, accelerate would repeat examples of the epoch's beginning, and the last batch
    would not be one process's last batch.
    """

    def __init__(self, num_examples: int, seed: int, *, multiple_of: int) -> None:
        self.num_examples, self.num_blanks = num_examples, -num_examples % multiple_of
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Trainer calls it before each, in a resumed run too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_examples + self.num_blanks

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.num_examples, generator=generator).tolist()
        yield from range(self.num_examples, len(self))


class MetricsCallback(TrainerCallback):
    """Reports Trainer's logs under the project's names."""

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
        """Report the logged values that have a name here."""
        named = {
            _METRICS[name]: float(value) for name, value in (logs or {}).items() if name in _METRICS
        }
        if state.is_world_process_zero:
            self.report(Step(state.global_step, state.max_steps, named))


class ThinCheckpoints(TrainerCallback):
    """Leaves the files for resuming in the newest two checkpoints only: one may be damaged."""

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


def _with_all_names(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's state dict from its whole weights: tied names too, and buffers."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    named = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: weights[first[id(named[name])]] if name in named else value
        for name, value in model.state_dict().items()
    }


def _rows(examples: Sequence[Example]) -> Dataset:
    return Dataset.from_list([asdict(example) for example in examples])
