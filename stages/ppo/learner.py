"""The update: minibatches of one rollout, PPO and pretraining gradients, one optimiser step each.

Gradients are sums over global counts, added up over micro-batches and ranks, so how the work is
cut changes nothing: every rank has the whole rollout and computes its part of each minibatch.
Policy and critic are two networks, each with its own learning rate and its own gradient clip.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stages.data.streams import PretrainingStream
from stages.distributed.network import Network, Replicated
from stages.distributed.sharding import (
    autocast,
    load_network_state,
    network_state,
    shard_frozen,
    sharded_network,
)
from stages.distributed.state import scatter_weights
from stages.ppo import objective
from stages.ppo.averaging import MovingAverage, weights_in_place
from stages.ppo.config import PPOConfig
from stages.ppo.diagnostics import RecoverableRunError, check_first_ratio
from stages.ppo.episodes import by_length, shuffled
from stages.ppo.lower_states import LowerStates
from stages.ppo.micro_batches import MicroBatch
from stages.ppo.models import Models
from stages.ppo.pretraining import add_gradients
from stages.ppo.reading import lay_out
from stages.ppo.rollout import Experience
from stages.ppo.served import PolicyServer
from stages.ppo.shared_passes import (
    Pass,
    critic_values,
    policy_logits,
    value_coefficient,
    value_gradient,
)
from stages.ppo.tally import Tally
from stages.seeding import EVERY_RANK, generator_for


class Learner:
    """Everything that an update changes: two networks, their optimisers, the moving average."""

    def __init__(
        self, models: Models, config: PPOConfig, accelerator: Accelerator, seed: int
    ) -> None:
        self.config, self.accelerator, self.seed = config, accelerator, seed
        limit = config.max_gradient_norm
        self.policy: Network = sharded_network(models.policy, limit, accelerator)
        self.critic: Network = sharded_network(models.critic, limit, accelerator)
        for frozen in (models.reference, models.reward):
            shard_frozen(frozen, accelerator)
        roles = (models.policy, models.critic, models.reference, models.reward)
        apart = self.policy.shards_weights or not config.kept.lower_layers
        self.models = replace(models, lower=LowerStates(() if apart else roles))
        self.micro = self._told = MicroBatch.told(config, accelerator.num_processes)
        self.server: PolicyServer | None = None  # who samples, if it is not this process
        self.rate_scale = 1.0  # of both learning rates; a rollback lowers it
        decay = config.ema_decay
        self.average = None if decay is None else MovingAverage(self.policy.shards(), decay)

    def update(
        self, data: Experience, examples: PretrainingStream | None, iteration: int, tally: Tally
    ) -> None:
        """All minibatches of all inner epochs; UnhealthyRunError before a step that would spoil."""
        for epoch in range(self.config.inner_epochs):
            for place, rows in enumerate(self.minibatches(iteration, epoch)):
                first = epoch == 0 and place == 0
                self._ppo_gradients(data, rows, tally, first=first)
                if examples is not None:
                    self._pretraining_gradients(examples, tally, compared=first)
                self._step(tally, iteration)

    def learning_rate(self, iteration: int) -> float:
        """The policy's learning rate in an iteration; the critic's has no warm-up."""
        warm = objective.warm_up(iteration, self.config.warmup_iterations)
        return self.config.learning_rate * warm * self.rate_scale

    def minibatches(self, iteration: int, epoch: int) -> tuple[Tensor, ...]:
        """A rollout's rows in the order of the update, whether or not models read them packed."""
        generator = generator_for(self.seed, "minibatches", iteration, epoch, EVERY_RANK)
        sharing = self.config.responses_per_prompt
        order = shuffled(self.config.episodes_per_rollout, sharing, generator)
        return torch.split(order.to(self.accelerator.device), self.config.minibatch)

    def own(self, rows: Tensor) -> Tensor:
        """This rank's part of a minibatch."""
        return rows.view(self.accelerator.num_processes, -1)[self.accelerator.process_index]

    @property
    def keeps_first_pass(self) -> bool:
        """Whether the first minibatch goes back through the passes that read the rollout.

        It must be the whole rollout, no engine may want a pass of its own, and where memory cuts
        the micro-batches, it must not have had to.
        """
        whole = self.config.minibatch == self.config.episodes_per_rollout
        cut = self.config.micro_batch_size == "auto" and self.micro != self._told
        return (
            self.config.kept.first_pass
            and whole
            and isinstance(self.policy, Replicated)
            and not cut
        )

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
            with weights_in_place(self.policy.shards(), weights):
                yield

    def copy_of_result(self) -> dict[str, Tensor]:
        """What this rank holds of the weights that would be the result if training ended now."""
        with self.result_weights():
            return {name: x.clone() for name, x in self.policy.shards().items()}

    def state(self) -> dict[str, Any]:
        """All that an update changes, for a checkpoint: whole tensors however it is sharded.

        Every rank must call it, and `restore`; the first one gets, and gives, the tensors.
        """
        return {
            "policy": network_state(self.policy),
            "critic": network_state(self.critic),
            "average": self.average and self.policy.full(self.average.average),
            "rate_scale": self.rate_scale,
            "micro": (self.micro.episodes, self.micro.examples),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, on as many ranks and as sharded as may be."""
        if self.average is not None:
            self.average.average = self.held_of(state["average"])
        load_network_state(self.policy, state["policy"])
        load_network_state(self.critic, state["critic"])
        self.models.lower.forget()
        self.rate_scale = state["rate_scale"]
        self.micro = self.micro.at_most(MicroBatch(*state["micro"]))  # the same numbers again

    def held_of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's parts of the first rank's weights; the policy's own are lost."""
        scatter_weights(self.policy.parameters, weights)
        return {name: x.clone() for name, x in self.policy.shards().items()}

    def _ppo_gradients(self, data: Experience, rows: Tensor, tally: Tally, *, first: bool) -> None:
        clip = self.config.clip
        count = float(data.episodes.response_BT[rows].sum())
        worst = torch.zeros((), device=rows.device)
        for one in data.passes if first and data.passes else self._passes(data, rows):
            batch = data.take(one.rows)
            mask_BT = batch.episodes.response_BT
            new_N = one.logprob_N
            old_N, advantage_N = batch.old_BT[mask_BT], batch.advantage_BT[mask_BT]
            loss = objective.policy_loss(new_N, old_N, advantage_N, clip=clip, count=count)
            critic_loss = self._gradients(loss, one, batch, count)
            with torch.no_grad():
                worst = torch.maximum(worst, ((new_N - old_N).exp() - 1.0).abs().max())
                spared_N = objective.clipped(new_N, old_N, advantage_N, clip)
            tokens = len(new_N)
            tally.add_all("ppo/clip_fraction", spared_N)
            tally.add("ppo/policy_loss", loss.item() * count, tokens)
            tally.add("ppo/value_loss", critic_loss.item() * count, tokens)
        if first:
            worst = self.accelerator.gather(worst).max()
            tally.add("ppo/first_ratio_error", worst)
            check_first_ratio(float(worst), self.accelerator.mixed_precision, self.models.policy)

    def _passes(self, data: Experience, rows: Tensor) -> Iterator[Pass]:
        """This rank's part of a minibatch, read by the policy micro-batch after micro-batch."""
        for part in by_length(data.episodes, self.own(rows), self.micro.episodes):
            episodes = data.episodes.take(part)
            token_N = episodes.response_tokens()[episodes.response_BT]
            with autocast(self.accelerator):
                layout = lay_out(episodes, packed=self.models.packed, right=self.models.pads_right)
                logits_NV, state_ND = policy_logits(self.models, layout, self.policy.model)
            temperature = self.config.sampling.temperature
            new_N = objective.chosen_logprobs(logits_NV, token_N, temperature)
            del logits_NV
            yield Pass(part, layout, new_N, state_ND, None)

    def _gradients(self, loss: Tensor, one: Pass, batch: Experience, count: float) -> Tensor:
        """Add the gradients of the policy's `loss` and of the critic's, which comes back."""
        if one.state_ND is None:
            self.policy.backward(loss)
            value_N = one.value_N
            if value_N is None:  # the policy's graph is gone now, so that one is held at a time
                with autocast(self.accelerator):
                    value_N = critic_values(self.models, one.layout, self.critic.model)
        else:
            if coefficient := value_coefficient(self.config.models):
                leaf_ND = one.state_ND.detach().requires_grad_()
                with autocast(self.accelerator):
                    value_N = self.models.critic(leaf_ND)  # an engine would take it for a pass back
                critic_loss = self._value_loss(value_N, batch, count)
                loss = loss + value_gradient(critic_loss, one.state_ND, leaf_ND, coefficient)
            self.policy.backward(loss)
            with autocast(self.accelerator):
                value_N = self.critic.model(one.state_ND.detach())
        critic_loss = self._value_loss(value_N, batch, count)
        self.critic.backward(critic_loss)
        return critic_loss

    def _value_loss(self, value_N: Tensor, batch: Experience, count: float) -> Tensor:
        mask_BT = batch.episodes.response_BT
        old_N, return_N = batch.value_BT[mask_BT], batch.return_BT[mask_BT]
        clip = self.config.value_clip
        return objective.value_loss(value_N, old_N, return_N, clip=clip, count=count)

    def _pretraining_gradients(
        self, examples: PretrainingStream, tally: Tally, *, compared: bool
    ) -> None:
        """Add gamma * d(nll)/d(theta) to the same buffers; `compared` measures it against PPO's."""
        mix = self.config.pretraining
        assert mix is not None
        drawn = examples.next(max(1, round(mix.examples_per_episode * self.config.minibatch)))
        before = self.policy.gradients() if compared else []
        add_gradients(*(self.policy, self.accelerator, mix, drawn, tally), size=self.micro.examples)
        if before:
            added = list(torch._foreach_sub(self.policy.gradients(), before))
            ratio = self.policy.norm(added) / self.policy.norm(before)
            tally.add("ppo/pretraining_gradient_ratio", ratio)

    def _step(self, tally: Tally, iteration: int = 0) -> None:
        critic_rate = self.config.critic_learning_rate * self.rate_scale
        norms = {  # both, so that no gradient is left for an iteration after a rollback
            "gradient": self.policy.step(self.learning_rate(iteration)),
            "critic_gradient": self.critic.step(critic_rate),
        }
        for name, norm in norms.items():
            if not torch.isfinite(norm):
                raise RecoverableRunError(
                    f"the {name.replace('_', ' ')} is not finite: the learning rate is too high "
                    "or a score is not finite; lower learning_rate, or set score_clip"
                )
            tally.add(f"ppo/{name}_norm", norm)
        if self.average is not None:
            self.average.step(self.policy.shards())
