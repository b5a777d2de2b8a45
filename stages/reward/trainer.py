"""The K-wise ranking trainer: transformers' Trainer with batches, loss and checkpoints of our own.

One element of a batch is one prompt with all its rankings. The loss divides by the elements of the
whole batch, over all ranks and accumulated micro-batches, so how a batch is cut changes nothing.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, TrainingArguments

from reward_models.model import RewardModel
from reward_models.ranking_loss import BatchElement, count_elements, pair_weights, ranking_loss
from stages.distributed.checkpoints import AtomicCheckpoints
from stages.distributed.optimizers import PLAIN, AdamKind
from stages.distributed.state import let_models_load_whole
from stages.progress import Report, Step
from stages.reward.batches import RankedPrompt
from stages.reward.shared_prompt import Batch, Layout
from stages.training_arguments import trainer_optimizer

TRAINED = "trained.safetensors"
BLANK = -1


class RewardTrainer(AtomicCheckpoints):
    """Trains a RewardModel on ranked prompts; saves only the trained parameters."""

    def __init__(
        self,
        model: RewardModel,
        args: TrainingArguments,
        elements: Sequence[RankedPrompt],
        layout: Layout,
        batch_element: BatchElement,
        report: Report,
        kind: AdamKind = PLAIN,
    ) -> None:
        at_once = args.train_batch_size * args.world_size
        self.order = SortedWithinBatches(
            [element.row_tokens for element in elements],
            at_once * args.gradient_accumulation_steps,
            args.seed,
            multiple_of=at_once if args.world_size > 1 else 1,
        )
        self.layout = layout
        self.batch_element = batch_element
        self.report = report
        self.correct_and_pairs_2 = torch.zeros(2)
        super().__init__(
            model=model,
            args=args,
            train_dataset=RankedPromptDataset(elements),
            data_collator=layout.collate,
            optimizer_cls_and_kwargs=trainer_optimizer(kind, args),
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
        """Return this micro-batch's part of the loss of the whole batch."""
        assert not return_outputs
        reward_BK, rank_BAK = self.layout.scores(model, inputs), inputs["rank_BAK"]
        self._count_correct(reward_BK.detach(), rank_BAK)
        loss = ranking_loss(
            reward_BK, rank_BAK, self.batch_element, num_elements=num_items_in_batch
        )
        # Ranks' gradients are averaged, ours have to be added.
        return loss * int(self.accelerator.num_processes)

    def num_items(self, batches: list[Batch], device: torch.device) -> Tensor:
        """Return the number of elements with a usable pair, over ranks and micro-batches."""
        counts = [count_elements(batch["rank_BAK"], self.batch_element) for batch in batches]
        total: Tensor = self.accelerator.gather(torch.stack(counts).sum().to(device)).sum()
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report the Trainer's numbers under our names."""
        if "loss" in logs:
            correct, pairs = self.accelerator.reduce(self.correct_and_pairs_2, "sum").tolist()
            self.correct_and_pairs_2.zero_()
            metrics = {
                "reward/loss_nats_per_pair": logs["loss"],
                "reward/pair_accuracy": correct / pairs,
                "reward/gradient_norm": float(logs["grad_norm"]),
                "reward/learning_rate": logs["learning_rate"],
            }
            if self.is_world_process_zero():
                self.report(Step(self.state.global_step, self.state.max_steps, metrics))
        super().log(logs, start_time)

    def _count_correct(self, reward_BK: Tensor, rank_BAK: Tensor) -> None:
        weight_BKK = pair_weights(rank_BAK, self.batch_element).float()
        gap_BKK = reward_BK[:, :, None] - reward_BK[:, None, :]
        correct_BKK = (gap_BKK > 0) + 0.5 * (gap_BKK == 0)
        counts_2 = torch.stack([(correct_BKK * weight_BKK).sum(), weight_BKK.sum()])
        self.correct_and_pairs_2 = self.correct_and_pairs_2.to(reward_BK.device) + counts_2

    def train_order(self) -> Sampler[int]:
        """Return the order of the ranked prompts."""
        return self.order

    def write_model(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Write the trained parameters; the rest is the base's."""
        assert self.model is not None
        folder.mkdir(parents=True, exist_ok=True)
        state = self.model.state_dict() if weights is None else weights
        trained = [name for name, weight in self.model.named_parameters() if weight.requires_grad]
        save_file({name: state[name].contiguous() for name in sorted(trained)}, folder / TRAINED)

    def weights_in(self, checkpoint: Path) -> Mapping[str, Tensor]:
        """Return the trained parameters that `write_model` wrote."""
        return load_file(checkpoint / TRAINED)

    @property
    def scorer(self) -> RewardModel:
        """Return the trained model, for all ranks to score the same batches with, together."""
        self.reader.train(False)
        return cast(RewardModel, self.reader)

    def whole(self, fresh: Callable[[], RewardModel]) -> RewardModel | None:
        """Return the trained model with whole parameters, on the first rank; every rank calls.

        Where parameters are sharded, it is a `fresh` model of the same kind with the weights.
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


class RankedPromptDataset(Dataset[RankedPrompt]):
    """The elements; BLANK stands for one without a pair, which fills a batch up."""

    def __init__(self, elements: Sequence[RankedPrompt]) -> None:
        self.elements = elements
        first = elements[0]
        token = first.prompt[:1]
        self.blank = replace(first, prompt=token, responses=(token, token), ranks=((0, 0),))

    def __len__(self) -> int:
        return len(self.elements)

    def __getitem__(self, index: int) -> RankedPrompt:
        return self.blank if index == BLANK else self.elements[index]


class SortedWithinBatches(Sampler[int]):
    """A random order each epoch, by length inside a batch, so that micro-batches pad little.

    The last batch is filled with BLANK to a multiple of the ranks' micro-batches: left to itself,
    accelerate would repeat the first prompts.
    """

    def __init__(
        self, lengths: Sequence[int], prompts_per_batch: int, seed: int, *, multiple_of: int
    ) -> None:
        self.lengths = lengths
        self.prompts_per_batch = prompts_per_batch
        self.seed = seed
        self.num_blanks = -len(lengths) % multiple_of
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Trainer calls it before each, in a resumed run too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.num_blanks

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        for start in range(0, len(order), self.prompts_per_batch):
            batch = order[start : start + self.prompts_per_batch]
            yield from sorted(batch, key=self.lengths.__getitem__)
        yield from [BLANK] * self.num_blanks
