"""The K-wise ranking trainer: transformers' Trainer with batches, loss and checkpoints of our own.

One element of a batch is one prompt with all its rankings. The loss divides by the elements of the
whole batch, over all ranks and accumulated micro-batches, so how a batch is cut changes nothing.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from reward_models.model import RewardModel
from reward_models.ranking_loss import num_elements, summed_loss
from stages.distributed.checkpoints import AtomicCheckpoints
from stages.distributed.state import let_models_load_whole
from stages.progress import Report, Step
from stages.reward.batches import RankedPrompt
from stages.reward.shared_prompt import Batch, Layout, Weigh

TRAINED = "trained.safetensors"
BLANK = -1


class RankedPromptDataset(Dataset[RankedPrompt]):
    """The elements as a data set; BLANK stands for one without a pair, which fills a batch up."""

    def __init__(self, elements: Sequence[RankedPrompt]) -> None:
        self.elements = elements
        first = elements[0]
        token = first.prompt[:1]
        self.blank = replace(first, prompt=token, responses=(token, token), ranks=((0, 0),))

    def __len__(self) -> int:
        return len(self.elements)

    def __getitem__(self, place: int) -> RankedPrompt:
        return self.blank if place == BLANK else self.elements[place]


class SortedWithinBatches(Sampler[int]):
    """A random order each epoch, by length inside a batch, so that micro-batches pad little.

    The last batch is filled with BLANK up to a whole number of `share`s, one for each rank's
    micro-batch: left to itself, accelerate would show the first prompts a second time.
    """

    def __init__(
        self, lengths: Sequence[int], prompts_per_batch: int, seed: int, *, share: int
    ) -> None:
        self.lengths = lengths
        self.prompts_per_batch = prompts_per_batch
        self.seed = seed
        self.num_blanks = -len(lengths) % share
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths) + self.num_blanks

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        for start in range(0, len(order), self.prompts_per_batch):
            batch = order[start : start + self.prompts_per_batch]
            yield from sorted(batch, key=self.lengths.__getitem__)
        yield from [BLANK] * self.num_blanks


class EpochOrder(TrainerCallback):
    """Tells the sampler which epoch begins, in a resumed run too."""

    def __init__(self, sampler: SortedWithinBatches) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the Trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Called by the Trainer."""
        self.sampler.epoch = int(state.epoch or 0.0)


class RewardTrainer(AtomicCheckpoints):
    """Trains a RewardModel on ranked prompts; saves only what moves."""

    def __init__(
        self,
        model: RewardModel,
        args: TrainingArguments,
        elements: Sequence[RankedPrompt],
        layout: Layout,
        weigh: Weigh,
        report: Report,
    ) -> None:
        at_once = args.train_batch_size * args.world_size
        self.order = SortedWithinBatches(
            [element.row_tokens for element in elements],
            at_once * args.gradient_accumulation_steps,
            args.seed,
            share=at_once if args.world_size > 1 else 1,
        )
        self.layout = layout
        self.report = report
        self.right_and_pairs_2 = torch.zeros(2)
        super().__init__(
            model=model,
            args=args,
            train_dataset=RankedPromptDataset(elements),
            data_collator=lambda batch: layout.collate(batch, weigh),
            callbacks=[EpochOrder(self.order)],
        )
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the whole batch itself
        let_models_load_whole()
        self.remove_callback(PrinterCallback)  # stdout belongs to the artefact's path

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This micro-batch's share of the loss of the whole batch."""
        assert not return_outputs
        assert num_items_in_batch is not None
        reward_BK = self.layout.scores(model, inputs)
        self._count_right(reward_BK.detach(), inputs["weight_BKK"])
        # Gradients of ranks are averaged, ours have to be added.
        ranks = self.accelerator.num_processes
        loss: Tensor = summed_loss(reward_BK, inputs["weight_BKK"]) * ranks / num_items_in_batch
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Pass the Trainer's numbers on under our names."""
        if "loss" in logs:
            right, pairs = self.accelerator.reduce(self.right_and_pairs_2, "sum").tolist()
            self.right_and_pairs_2.zero_()
            metrics = {
                "reward/loss_nats_per_pair": logs["loss"],
                "reward/pair_accuracy": right / pairs,
                "reward/gradient_norm": float(logs["grad_norm"]),
                "reward/learning_rate": logs["learning_rate"],
            }
            if self.is_world_process_zero():
                self.report(Step(self.state.global_step, self.state.max_steps, metrics))
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: object = None) -> Sampler[int]:  # noqa: ARG002
        return self.order

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        counted = sum(num_elements(batch["weight_BKK"]) for batch in batch_samples)
        assert isinstance(counted, Tensor)
        gathered: Tensor = self.accelerator.gather(counted.to(device))
        return gathered.sum()

    def _count_right(self, reward_BK: Tensor, weight_BKK: Tensor) -> None:
        gap_BKK = reward_BK[:, :, None] - reward_BK[:, None, :]
        right_BKK = (gap_BKK > 0) + 0.5 * (gap_BKK == 0)
        self.right_and_pairs_2 = self.right_and_pairs_2.to(reward_BK.device)
        self.right_and_pairs_2 += torch.stack([(right_BKK * weight_BKK).sum(), weight_BKK.sum()])

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write what moves; the rest is the base's."""
        if not self.args.should_save:
            return
        assert output_dir is not None
        assert self.model is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.model.state_dict() if state_dict is None else state_dict
        moved = {
            name for name, parameter in self.model.named_parameters() if parameter.requires_grad
        }
        save_file({name: state[name].contiguous() for name in sorted(moved)}, folder / TRAINED)

    def weights_in(self, checkpoint: Path) -> Mapping[str, Tensor]:
        """What `_save` wrote."""
        return load_file(checkpoint / TRAINED)

    @property
    def scorer(self) -> RewardModel:
        """The trained model, for all ranks to score the same batches with, together."""
        self.reader.train(False)
        return cast(RewardModel, self.reader)

    def whole(self, fresh: Callable[[], RewardModel]) -> RewardModel | None:
        """The trained model with whole parameters, on the first rank; every rank calls.

        Where parameters are sharded, it is a `fresh` model of the same kind that gets the weights.
        """
        if not self.is_sharded:
            return cast(RewardModel, self.model)
        weights = self.trained_weights()
        if not self.is_world_process_zero():
            return None
        model = fresh()
        _, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected
        return model
