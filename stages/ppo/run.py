"""A run of PPO: its models, networks and optimisers, and all else that a checkpoint holds."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from reward_models.model import RewardModel
from stages.adapters.cached_layers import CachedLayers
from stages.data.streams import PretrainingStream
from stages.data.template import stop_ids
from stages.distributed.checkpoints import Checkpoints
from stages.distributed.idle import Idle
from stages.distributed.network import MovingAverage, Replicated, swapped
from stages.distributed.optimizers import AdamKind
from stages.distributed.sharding import (
    load_network_state,
    network_state,
    shard_frozen,
    sharded_network,
    sharding,
)
from stages.distributed.state import scatter_weights
from stages.generation.vllm import VllmSampler
from stages.generation.vllm_server import VllmServer
from stages.ppo import losses
from stages.ppo.config import OwnRollouts, PPOConfig, SeparateModels
from stages.ppo.health import RecoverableRunError, UnhealthyRunError
from stages.ppo.micro_batches import MicroBatch
from stages.ppo.models import Models
from stages.ppo.rollout import LocalSampler, Sampler
from stages.progress import Report, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Best:
    """The weights with the highest validation score so far, and the iteration they come from."""

    score: float
    iteration: int
    weights: Mapping[str, Tensor]


@dataclass
class RunState:
    """Counters and controllers; `iteration` counts the iterations begun."""

    kl_coefficient: float
    iteration: int = 0
    learning_rate_scale: float = 1.0  # of both learning rates; a rollback lowers it
    over_budget: bool = False  # the KL budget is spent, which ends the run
    best: Best | None = None
    first_response_tokens: float | None = None  # mean response length of the first rollout
    rollbacks: list[dict[str, Any]] = field(default_factory=list)


class PPORun:
    """Four models, the two networks in training, the sampler, and how far the run has come."""

    def __init__(
        self,
        models: Models,
        config: PPOConfig,
        accelerator: Accelerator,
        *,
        seed: int,
        out: Path,
        stream: PretrainingStream | None = None,
    ) -> None:
        self.config, self.accelerator, self.seed = config, accelerator, seed
        kind = AdamKind(config.optimizer, config.precision.masters, seed)
        self.policy, self.critic = (
            sharded_network(
                *(model, config.max_gradient_norm, accelerator, kind),
                autocast=models.numerics.compute if models.numerics.is_wide(model) else None,
            )
            for model in (models.policy, models.critic)
        )
        shard_frozen(models.reference, accelerator)
        if isinstance(models.reward, RewardModel):  # ranks score different texts with another one
            shard_frozen(models.reward, accelerator)
        roles = (models.policy, models.critic, models.reference, models.reward)
        cacheable = config.cached.lower_layers and not self.policy.shards_weights
        self.models = replace(
            models,
            lower=CachedLayers(roles if cacheable else ()),
            tokens_at_once=None if self.policy.shards_weights else models.tokens_at_once,
            idle=self._idle(models),
        )
        self.micro = self.configured = MicroBatch.configured(config, accelerator.num_processes)
        self.sampler: Sampler = self._sampler(out / "sent")
        self.stream = stream  # the pretraining text of the ptx term
        self.average = None
        if config.ema_decay is not None:
            self.average = MovingAverage(
                self.policy.shards(), config.ema_decay, on_host=config.models.offload
            )
        self.state = RunState(kl_coefficient=config.kl.coefficient)

    @property
    def keeps_first_forward(self) -> bool:
        """True where the first minibatch goes backward through the rollout's own forward passes.

        It must be the whole rollout, no engine may need a forward pass of its own, and where memory
        limits the micro-batches, it must not have had to.
        """
        config, by_memory = self.config, self.config.micro_batch_size == "auto"
        return (
            config.cached.first_forward
            and config.minibatch == config.episodes_per_rollout
            and isinstance(self.policy, Replicated)
            and not (by_memory and self.micro != self.configured)
        )

    @property
    def value_coefficient(self) -> float:
        """The weight of the value loss in the policy's; 0 where the critic is a separate model."""
        sharing = self.config.models
        return 0.0 if isinstance(sharing, SeparateModels) else sharing.value_coefficient

    def learning_rate(self, iteration: int) -> float:
        """The policy's learning rate in an iteration."""
        warm = losses.warm_up(iteration, self.config.warmup_iterations)
        return self.config.learning_rate * warm * self.state.learning_rate_scale

    @property
    def critic_learning_rate(self) -> float:
        """The critic's learning rate, which has no warm-up."""
        return self.config.critic_learning_rate * self.state.learning_rate_scale

    def is_due(self, every: int) -> bool:
        """Return true in every so many iterations and in the last one."""
        return self.state.iteration % every == 0 or self.state.iteration == self.config.iterations

    def own(self, rows: Tensor) -> Tensor:
        """This rank's part of a minibatch."""
        return rows.view(self.accelerator.num_processes, -1)[self.accelerator.process_index]

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """Add up the tensors of all ranks."""
        summed: Tensor = self.accelerator.reduce(x, reduction="sum")
        return summed

    def report(self, report: Report, metrics: Mapping[str, float]) -> None:
        """Report the metrics of an iteration, from the main rank."""
        if self.accelerator.is_main_process:
            report(Step(self.state.iteration, self.config.iterations, metrics))

    @contextmanager
    def result_weights(self, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Let the policy hold `weights` for a while; None: the moving average, if there is one."""
        if weights is None and self.average is not None:
            weights = self.average.weights
        if weights is None:
            yield
        else:
            with swapped(self.policy.shards(), weights):
                yield

    def result_shards(self) -> dict[str, Tensor]:
        """Copy this rank's shards of the weights that would be the result now."""
        with self.result_weights():
            return {name: x.clone() for name, x in self.policy.shards().items()}

    def state_dict(self) -> dict[str, Any]:
        """All that a run changes, for a checkpoint: full tensors however they are sharded.

        Every rank must call it, and `load_state_dict`; the main one gets, and gives, the tensors.
        """
        best = self.state.best
        return {
            "policy": network_state(self.policy),
            "critic": network_state(self.critic),
            "average": self.average and self.policy.full(self.average.weights),
            "best": best
            and {
                "score": best.score,
                "iteration": best.iteration,
                "weights": self.policy.full(best.weights),
            },
            "micro": (self.micro.episodes, self.micro.examples),
            "stream": self.stream and self.stream.state(),
            "state": {**vars(self.state), "best": None},
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, on any number of ranks, however they are sharded."""
        best = None
        if saved["best"] is not None:
            weights = self._shards_of(saved["best"]["weights"])
            best = Best(**{**saved["best"], "weights": weights})
        if self.average is not None:
            self.average.set(self._shards_of(saved["average"]))
        load_network_state(self.policy, saved["policy"])
        load_network_state(self.critic, saved["critic"])
        self.models.lower.forget()
        self.micro = self.micro.at_most(MicroBatch(*saved["micro"]))  # the same numbers again
        if self.stream is not None:
            self.stream.restore(saved["stream"])
        self.state = RunState(**{**saved["state"], "best": best})

    def save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint of the current iteration."""
        checkpoints.save(self.state.iteration, self.state_dict())

    def roll_back(self, error: UnhealthyRunError, checkpoints: Checkpoints) -> None:
        """Return to the last checkpoint with smaller steps, where that may help; else raise.

        A checkpoint is only ever written after its iteration passed every check. Both changes are
        part of the checkpoint that is written at once, so a run that is killed later resumes with
        them. Nothing else of the iterations that were taken back remains.
        """
        config, failed, rollbacks = self.config, self.state.iteration, self.state.rollbacks
        why, rule = f"iteration {failed}: {error}", config.health.rollback
        if config.health.action != "rollback" or not isinstance(error, RecoverableRunError):
            raise UnhealthyRunError(why) from error
        if len(rollbacks) == rule.times:
            learning_rate = config.learning_rate * self.state.learning_rate_scale
            raise UnhealthyRunError(
                f"{why} (after {rule.times} rollbacks, health.rollback.times; restart with "
                f"learning_rate {learning_rate:.3g} or less and kl.coefficient "
                f"{self.state.kl_coefficient:.3g} or more)"
            ) from error
        saved = checkpoints.latest()
        assert saved is not None, "a run with rollbacks starts with a checkpoint"
        self.load_state_dict(saved)
        state = self.state
        state.learning_rate_scale *= rule.learning_rate_factor
        state.kl_coefficient *= rule.kl_factor
        row = {
            "from_iteration": failed,
            "to_iteration": state.iteration,
            "why": why,
            "learning_rate_scale": state.learning_rate_scale,
            "kl_coefficient": state.kl_coefficient,
        }
        state.rollbacks = [*rollbacks, row]
        log.warning(
            "%s; back to iteration %d with %g of the learning rate and KL coefficient %.3g "
            "(rollback %d of %d)",
            why,
            state.iteration,
            state.learning_rate_scale,
            state.kl_coefficient,
            len(state.rollbacks),
            rule.times,
        )
        self.save(checkpoints)

    def _idle(self, models: Models) -> Idle:
        """The reference and the reward model, where they are to wait on the host."""
        if not self.config.models.offload:
            return Idle()
        if sharding(self.accelerator) != "none":
            raise ValueError(
                "models.offload is true, but weights or moments are sharded; expected ddp or a "
                "single process"
            )
        trained = (models.policy, models.critic)
        return Idle((models.reference, models.reward), trained, self.accelerator.device)

    def _sampler(self, folder: Path) -> Sampler:
        rollouts, models, accelerator = self.config.rollouts, self.models, self.accelerator
        if isinstance(rollouts, OwnRollouts):
            return LocalSampler(models, self.policy, rollouts, accelerator)
        return VllmSampler(
            VllmServer(rollouts.url, timeout_s=rollouts.timeout_s, parallel=rollouts.parallel),
            models.policy,
            self.policy,
            accelerator,
            stops=stop_ids(models.tokenizer, models.policy),
            folder=folder,
            transfer=rollouts.transfer,
            sleeps=rollouts.sleep,
        )

    def _shards_of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's shards of the main rank's weights; the policy's own are overwritten."""
        parameters = self.policy.parameters
        if all(p.dtype == torch.float32 for p in parameters.values()):
            scatter_weights(parameters, weights)
            return {name: x.clone() for name, x in self.policy.shards().items()}
        # An average is float32 beside weights in 16 bits, which no sharding has.
        wide = {name: nn.Parameter(p.detach().float()) for name, p in parameters.items()}
        scatter_weights(wide, weights)
        return {name: p.detach() for name, p in wide.items()}
