"""The update: minibatches of one rollout, PPO and pretraining gradients, one optimiser step each.

Gradients are sums over global counts, added up over micro-batches and ranks, so how the work is
cut changes nothing. Policy and critic are two networks in one optimiser; each has its own learning
rate and its own gradient clip.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stages.config import PPOConfig
from stages.ppo import objective
from stages.ppo.averaging import MovingAverage, copy_weights, weights_in_place
from stages.ppo.diagnostics import RecoverableRunError, check_first_ratio
from stages.ppo.episodes import by_length, shuffled
from stages.ppo.models import Models, trained_parameters
from stages.ppo.pretraining import PretrainingStream, pretraining_nll
from stages.ppo.randomness import generator_for
from stages.ppo.reading import lay_out, response_logits, response_values
from stages.ppo.rollout import Experience
from stages.ppo.tally import Tally

BETAS = (0.9, 0.95)  # Ouyang et al. 2022, appendix C
WEIGHT_DECAY = 0.0  # the paper does not say
EPSILON = 1e-5  # the paper does not say; Ziegler et al.'s code has 1e-5


class Learner:
    """Everything that an update changes: two networks, the optimiser, the moving average."""

    def __init__(
        self, models: Models, config: PPOConfig, accelerator: Accelerator, seed: int
    ) -> None:
        self.models, self.config, self.accelerator, self.seed = models, config, accelerator, seed
        self.policy = trained_parameters(models.policy)
        self.critic = trained_parameters(models.critic)
        groups = [
            {"params": list(self.policy.values()), "lr": config.learning_rate},
            {"params": list(self.critic.values()), "lr": config.critic_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.rate_scale = 1.0  # of both learning rates; a rollback lowers it
        decay = config.ema_decay
        self.average = None if decay is None else MovingAverage(self.policy, decay)

    def update(
        self, data: Experience, examples: PretrainingStream | None, iteration: int, tally: Tally
    ) -> None:
        """All minibatches of all inner epochs; UnhealthyRunError before a step that would spoil."""
        policy, critic = self.optimizer.param_groups
        warm = objective.warm_up(iteration, self.config.warmup_iterations)
        policy["lr"] = self.config.learning_rate * warm * self.rate_scale
        critic["lr"] = self.config.critic_learning_rate * self.rate_scale
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = self.config.minibatch // ranks
        for epoch in range(self.config.inner_epochs):
            generator = generator_for(self.seed, "minibatches", iteration, epoch, rank)
            order = shuffled(data.episodes, generator)
            for place, rows in enumerate(torch.split(order, size)):
                first = epoch == 0 and place == 0
                self._ppo_gradients(data, rows, tally, first=first)
                if examples is not None:
                    self._pretraining_gradients(examples, tally, compared=first)
                self._step(tally)

    @property
    def learning_rate(self) -> float:
        """The policy's, as of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def total(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        summed: Tensor = self.accelerator.reduce(x, reduction="sum")
        return summed

    @contextmanager
    def result_weights(self, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Let the policy hold `weights` for a while; None: the moving average, if there is one."""
        if weights is None and self.average is not None:
            weights = self.average.average
        if weights is None:
            yield
        else:
            with weights_in_place(self.policy, weights):
                yield

    def copy_of_result(self) -> dict[str, Tensor]:
        """The weights that would be the result if training ended now."""
        with self.result_weights():
            return {name: p.detach().clone() for name, p in self.policy.items()}

    def state(self) -> dict[str, Any]:
        """All that an update changes, for a checkpoint."""
        return {
            "policy": {name: p.detach() for name, p in self.policy.items()},
            "critic": {name: p.detach() for name, p in self.critic.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.average,
            "rate_scale": self.rate_scale,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        copy_weights(self.policy, state["policy"])
        copy_weights(self.critic, state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.zero_grad(set_to_none=True)
        self.rate_scale = state["rate_scale"]
        if self.average is not None:
            self.average.average = {
                name: mean.to(self.accelerator.device) for name, mean in state["average"].items()
            }

    def _ppo_gradients(self, data: Experience, rows: Tensor, tally: Tally, *, first: bool) -> None:
        clip, temperature = self.config.clip, self.config.sampling.temperature
        count = float(self.total(data.episodes.response_BT[rows].sum()))
        worst = torch.zeros((), device=rows.device)
        for part in by_length(data.episodes, rows, self.config.micro_batch_size):
            batch = data.take(part)
            mask_BT = batch.episodes.response_BT
            token_N, old_N = batch.episodes.response_tokens()[mask_BT], batch.old_BT[mask_BT]
            advantage_N = batch.advantage_BT[mask_BT]
            with self.accelerator.autocast():
                layout = lay_out(batch.episodes)
                logits_NV = response_logits(self.models.policy, layout)
                value_N = response_values(self.models.critic, layout)
            new_N = objective.chosen_logprobs(logits_NV, token_N, temperature)
            loss = objective.policy_loss(new_N, old_N, advantage_N, clip=clip, count=count)
            torch.autograd.backward(loss)
            critic_loss = objective.value_loss(
                value_N,
                batch.value_BT[mask_BT],
                batch.return_BT[mask_BT],
                clip=self.config.value_clip,
                count=count,
            )
            torch.autograd.backward(critic_loss)
            with torch.no_grad():
                worst = torch.maximum(worst, ((new_N - old_N).exp() - 1.0).abs().max())
                spared_N = objective.clipped(new_N, old_N, advantage_N, clip)
            tokens = len(token_N)
            tally.add_all("ppo/clip_fraction", spared_N)
            tally.add("ppo/policy_loss", loss.item() * count, tokens)
            tally.add("ppo/value_loss", critic_loss.item() * count, tokens)
        if first:
            worst = self.accelerator.gather(worst).max()
            tally.add("ppo/first_ratio_error", worst)
            check_first_ratio(float(worst), self.accelerator.mixed_precision, self.models.policy)

    def _pretraining_gradients(
        self, examples: PretrainingStream, tally: Tally, *, compared: bool
    ) -> None:
        """Add gamma * d(nll)/d(theta) to the same buffers; `compared` measures it against PPO's."""
        mix = self.config.pretraining
        assert mix is not None
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        count = max(ranks, round(mix.examples_per_episode * self.config.minibatch))
        drawn = examples.next(count)
        predicted = int(drawn[1][:, 1:].sum())  # over all ranks
        divisor = predicted if mix.normaliser == "token" else count
        ids_BL, mask_BL = (x_BL[rank::ranks].to(self.accelerator.device) for x_BL in drawn)
        size = self.config.micro_batch_size or len(ids_BL)
        before = _gradients(self.policy) if compared else []
        for part_BL, part_mask_BL in zip(
            torch.split(ids_BL, size), torch.split(mask_BL, size), strict=True
        ):
            with self.accelerator.autocast():
                nll = pretraining_nll(self.models.policy, part_BL, part_mask_BL)
            torch.autograd.backward(mix.coefficient * nll / divisor)
            tokens = int(part_mask_BL[:, 1:].sum())
            tally.add("ppo/pretraining_loss_nats_per_token", nll.item(), tokens)
        if compared:
            added = list(torch._foreach_sub(_gradients(self.policy), before))
            ratio = nn.utils.get_total_norm(added) / nn.utils.get_total_norm(before)
            tally.add("ppo/pretraining_gradient_ratio", ratio)

    def _step(self, tally: Tally) -> None:
        limit = self.config.max_gradient_norm or math.inf  # inf only measures
        for name, parameters in (("gradient", self.policy), ("critic_gradient", self.critic)):
            self._add_over_ranks(list(parameters.values()))
            norm = nn.utils.clip_grad_norm_(parameters.values(), limit)
            if not torch.isfinite(norm):
                raise RecoverableRunError(
                    f"the {name.replace('_', ' ')} is not finite: the learning rate is too high "
                    "or a score is not finite; lower learning_rate, or set score_clip"
                )
            tally.add(f"ppo/{name}_norm", norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.step(self.policy)

    def _add_over_ranks(self, parameters: list[nn.Parameter]) -> None:
        if self.accelerator.num_processes == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = self.total(parameter.grad)


def _gradients(parameters: dict[str, nn.Parameter]) -> list[Tensor]:
    return [p.grad.clone() for p in parameters.values() if p.grad is not None]
