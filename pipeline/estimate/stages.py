"""The memory, operations and disk of each training stage of an experiment.

Everything is counted for the longest row that the settings allow, so the memory is the peak.
Weights, gradients, Adam's two moments and the moving average are float32. Permanent items add up;
of temporary ones (the KV cache during sampling, activations during the update) the largest counts.
Operations are two a weight and token forward and four backward (Kaplan et al. 2020), two where the
weights are frozen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from pipeline.config.experiment import ExperimentConfig
from pipeline.estimate.lengths import Lengths
from pipeline.estimate.model_size import ModelSize, activation_bytes, model_size
from pipeline.launch.options import Sharding
from pipeline.runs.manifest import checked_source
from pipeline.runs.stage import Source
from stages.adapters.config import Adaptation, Probe
from stages.models import device
from stages.ppo.config import JointModels, OwnRollouts, PPOConfig, SeparateModels
from stages.reward.config import RewardConfig
from stages.sft.config import SFTConfig

SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)
ADVISED: tuple[Sharding, ...] = ("zero2", "zero3", "zero3-offload")  # the simplest first
FLOAT = 4  # bytes
MOST_DEVICES = 1024
MOMENTS = 2  # of Adam, a parameter
LOGIT_COPIES = 5  # of the logits, their gradients and what lies between, at the loss's peak
FORWARD = 1.0  # passes; a backward pass costs two of them, or one where the weights are frozen
NUM_CHECKPOINTS = 3  # of PPO: the last two, and the one that is being written


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes by item, on the device of one rank.

    `weights` are of the trained model with its base; `reward` has its base only where that is
    another one; `reference` and `critic` are their own parameters. `policy` is the size of PPO's
    policy, which is gathered to sample responses.
    """

    stage: str
    weights: int
    gradients: int
    optimizer: int
    activations: int  # with the logits: the larger of update and pretraining step
    cache: int = 0  # the KV cache with the logits, during sampling
    critic: int = 0
    reference: int = 0
    reward: int = 0
    average: int = 0  # and other copies of what the policy trains
    policy: int = 0
    result: int = 0  # the chosen weights, loaded once more to be saved, on the CPU
    least: bool = False  # no smaller micro-batch is possible
    in_buckets: bool = True  # copies of a model reduce gradients in buckets of their own
    gathered: int = 0  # the rest of a sharded policy, during sampling
    host: int = 0  # on the CPU under offload, for all ranks of one host

    @property
    def permanent(self) -> int:
        """The items that are in memory all the time, without gradients."""
        models = self.weights + self.critic + self.reference + self.reward
        return models + self.optimizer + self.average

    @property
    def total(self) -> int:
        """The peak."""
        temporary = max(self.activations, self.cache + self.gathered)
        return self.permanent + max(self.gradients + temporary, self.result)

    def sharded(self, how: Sharding, ranks: int) -> "StageMemory":
        """Return a rank's share (Rajbhandari et al. 2020, section 5), with unchanged activations.

        DeepSpeed keeps a float32 copy of the weights it updates beside those it computes with;
        FSDP2 does not.
        """
        if how == "none" or ranks == 1:
            return self
        if how == "ddp":
            return replace(self, gradients=self.gradients * (2 if self.in_buckets else 1))
        copied = self.optimizer + self.optimizer // MOMENTS
        shard = replace(self, optimizer=copied // ranks)
        if how == "zero1":
            return shard
        shard = replace(shard, gradients=self.gradients // ranks)
        if how == "zero2":
            return shard
        shard = replace(
            shard,
            weights=self.weights // ranks,
            critic=self.critic // ranks,
            reference=self.reference // ranks,
            reward=self.reward // ranks,
            average=self.average // ranks,
            gathered=self.policy - self.policy // ranks,
        )
        if how == "zero3":
            return shard
        if how == "fsdp2":
            return replace(shard, optimizer=self.optimizer // ranks)
        offloaded = shard.permanent - shard.average + shard.gradients
        alone = replace(shard, weights=0, critic=0, reference=0, reward=0)
        return replace(
            alone, optimizer=0, gradients=0, gathered=self.policy, host=offloaded * ranks
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """The simplest sharding under which a stage fits."""

    how: Sharding
    ranks: int
    memory: StageMemory


def placement(memory: StageMemory, room: int, devices: int) -> Placement | None:
    """Return the simplest sharding in which a rank's share fits `room`; None if none does.

    It uses the existing devices, else the smallest power of two of them, up to MOST_DEVICES.
    """
    if memory.total <= room:
        return Placement("none", 1, memory)
    more = [2**power for power in range(1, 20) if devices < 2**power <= MOST_DEVICES]
    for ranks in (devices, *more):
        for how in ADVISED:
            share = memory.sharded(how, ranks)
            if ranks > 1 and share.total <= room:
                return Placement(how, ranks, share)
    return None


def trained(parameters: int, trainable: int) -> tuple[int, int, int]:
    """Return (weights, gradients, optimiser) in bytes."""
    return parameters * FLOAT, trainable * FLOAT, trainable * FLOAT * MOMENTS


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """The memory of one stage, operations in matrix products, bytes that decoding reads, disk."""

    memory: StageMemory
    flops: float
    read_bytes: float  # weights read from memory, one pass a step of every batch that decodes
    disk: int


@dataclass(frozen=True, slots=True)
class Model:
    """A base under an adaptation."""

    source: Source
    size: ModelSize
    adaptation: Adaptation

    @classmethod
    def of(cls, name: str, adaptation: Adaptation) -> "Model":
        """Build it from its config alone."""
        source = checked_source(name)
        return cls(source, model_size(source, adaptation), adaptation)

    @property
    def trained(self) -> int:
        """The parameters that training a policy changes."""
        return self.size.trainable

    @property
    def trained_with_head(self) -> int:
        """The parameters that training a reward model or critic changes; of a probe, the head."""
        return self.head + (0 if isinstance(self.adaptation, Probe) else self.trained)

    @property
    def head(self) -> int:
        """The parameters of a reward model's head."""
        width, chosen = self.size.width, self.adaptation
        if isinstance(chosen, Probe) and chosen.kind == "mlp":
            return width + chosen.width * (2 * width + 1) + width
        return width

    @property
    def frozen(self) -> int:
        """The parameters of the base that are frozen."""
        return self.size.parameters - self.size.trainable

    @property
    def training_cost(self) -> float:
        """The cost of a forward and a backward pass, in forward passes.

        A probe's backbone has no backward pass.
        """
        if isinstance(self.adaptation, Probe):
            return 1.0
        return 2.0 if self.frozen else 3.0

    def activations(self, rows: int, tokens: int) -> int:
        """Return the activations of so many rows, in bytes."""
        if isinstance(self.adaptation, Probe):
            return rows * tokens * self.size.width * FLOAT
        return rows * activation_bytes(self.source, tokens)

    def logits(self, rows: int, tokens: int) -> int:
        """Return the logits of so many rows and the tensors computed beside them, in bytes."""
        return rows * tokens * self.size.vocabulary * FLOAT * LOGIT_COPIES


def stage_estimates(config: ExperimentConfig, sizes: Lengths) -> Iterator[StageEstimate]:
    """Yield the estimates of the stages that train, as far as the experiment has them."""
    if config.sft is not None:
        yield _sft("sft", config, config.sft, sizes)
    if config.reward is not None:
        yield _reward(config, config.reward, sizes)
    if config.ppo_init is not None:
        yield _sft("ppo-init", config, config.ppo_init, sizes)
    for name, chosen in (("ppo", config.ppo), ("ppo-ptx", config.ppo_ptx)):
        if chosen is not None:
            yield _ppo(name, config, chosen, sizes)


def reward_base(config: ExperimentConfig) -> str:
    """Return the model that the reward model starts from; SFT is as large as the base."""
    return config.model if config.reward_base in ("sft", "base") else config.reward_base


def _sft(name: str, config: ExperimentConfig, chosen: SFTConfig, sizes: Lengths) -> StageEstimate:
    model = Model.of(config.model, chosen.adaptation)
    counts, texts = model.size, sizes.demonstrations
    rows = chosen.micro_batch_size or chosen.batch_size
    longest = min(texts.longest, chosen.max_tokens)
    tokens = chosen.epochs * texts.count * min(texts.mean, chosen.max_tokens)
    if chosen.pretraining is not None:
        longest = max(longest, chosen.pretraining.tokens_per_example)
        share = chosen.pretraining.share / (1.0 - chosen.pretraining.share)
        tokens += chosen.epochs * texts.count * share * chosen.pretraining.tokens_per_example
    weights, gradients, optimizer = trained(counts.parameters, counts.trainable)
    activations = model.activations(rows, longest)  # TRL computes the logits piece by piece
    memory = StageMemory(
        name,
        weights,
        gradients,
        optimizer,
        activations,
        result=2 * weights if device().type == "cpu" else 0,
        least=rows == 1,
    )
    saved = _saved(counts)
    disk = (chosen.epochs + 1) * saved + optimizer
    return StageEstimate(memory, model.training_cost * tokens * counts.flops, 0.0, disk)


def _reward(config: ExperimentConfig, chosen: RewardConfig, sizes: Lengths) -> StageEstimate:
    model = Model.of(reward_base(config), chosen.adaptation)
    counts, prompts = model.size, sizes.ranking_prompts
    most = max(setting.max_new_tokens for setting in config.sampling.settings)
    low, high = config.sampling.responses
    each = min(prompts.longest + most, chosen.max_tokens)
    response_tokens = each - min(prompts.longest, each - 1)
    longest = min(prompts.longest, each) + high * response_tokens
    mean = prompts.mean + (low + high) / 2 * min(sizes.responses.mean, most)
    tokens = chosen.epochs * prompts.count * mean
    num_trained = model.trained_with_head
    weights, gradients, optimizer = trained(counts.parameters, num_trained)
    rows = 1 if chosen.micro_prompts == "auto" else chosen.micro_prompts  # the least, as in PPO
    activations = (
        model.activations(rows, longest) + rows * high * response_tokens * each * FLOAT
    )  # and the mask
    memory = StageMemory("reward", weights, gradients, optimizer, activations, least=rows == 1)
    disk = 2 * _saved(counts) + optimizer
    return StageEstimate(memory, model.training_cost * tokens * counts.flops, 0.0, disk)


def _ppo(name: str, config: ExperimentConfig, chosen: PPOConfig, sizes: Lengths) -> StageEstimate:
    policy = Model.of(config.model, chosen.adaptation)
    critic = _critic_model(config, policy)
    own_critic = isinstance(chosen.models, SeparateModels)
    num_trained = policy.trained + (critic.trained_with_head if own_critic else policy.size.width)
    _, gradients, optimizer = trained(0, num_trained)
    joint = isinstance(chosen.models, JointModels)
    is_shared = joint or _share_backbone(config, policy, critic)
    reward_backbone = 0 if is_shared else critic.frozen
    copies = (chosen.ema_decay is not None) + (chosen.validation is not None)
    if chosen.pretraining is not None:
        copies += 2  # the two gradients that are compared at the first minibatch
    memory = StageMemory(
        name,
        policy.size.parameters * FLOAT,
        gradients,
        optimizer,
        _update_bytes(chosen, policy, critic, sizes.ppo_prompts.longest),
        _rollout_bytes(chosen, policy, sizes.ppo_prompts.longest),
        critic=(critic.trained_with_head if own_critic else policy.size.width) * FLOAT,
        reference=policy.trained * FLOAT,
        reward=_weight_bytes(config.reward_model)
        if config.reward_model is not None
        else (reward_backbone + critic.trained_with_head) * FLOAT,
        average=copies * policy.trained * FLOAT,
        policy=policy.size.parameters * FLOAT,
        least=_rows(chosen) == chosen.responses_per_prompt,
        in_buckets=False,
    )
    state = (policy.trained * copies + num_trained) * FLOAT + optimizer
    disk = NUM_CHECKPOINTS * state + _saved(policy.size) + _saved(critic.size)
    flops, read = _ppo_work(chosen, policy, critic, sizes)
    return StageEstimate(memory, flops, read, disk)


def _critic_model(config: ExperimentConfig, policy: Model) -> Model:
    """Return the critic's size: the reward model's, or the policy's beside one made elsewhere."""
    if config.reward is None:
        return policy
    return Model.of(reward_base(config), config.reward.adaptation)


def _weight_bytes(name: str) -> int:
    """Return the bytes of a folder's weights; 0 for a model on the hub, which is not looked up."""
    files = Path(name).glob("*.safetensors") if Path(name).is_dir() else ()
    return sum(file.stat().st_size for file in files)


def _share_backbone(config: ExperimentConfig, policy: Model, critic: Model) -> bool:
    """Return True where policy and reward model are adapters on one base."""
    start = config.sft_adaptation if config.ppo_init is None else config.ppo_init.adaptation
    of_policy = "sft" if start.family == "full" else "base"
    of_reward = of_policy if config.reward_base == "sft" else config.reward_base
    return bool(policy.frozen and critic.frozen) and of_policy == of_reward


def _rows(chosen: PPOConfig) -> int:
    """Return the episodes that an update holds at once; where memory decides, the fewest."""
    if chosen.micro_batch_size == "auto":
        return chosen.responses_per_prompt
    if chosen.cached.first_forward and chosen.minibatch == chosen.episodes_per_rollout:
        return chosen.minibatch  # whose graphs are in memory at once
    return chosen.micro_batch_size


def _update_bytes(chosen: PPOConfig, policy: Model, critic: Model, prompt: int) -> int:
    rows = _rows(chosen)
    response_tokens = chosen.sampling.max_new_tokens
    update = policy.activations(rows, prompt + response_tokens)
    if isinstance(chosen.models, SeparateModels):
        update += critic.activations(rows, prompt + response_tokens)
    update += policy.logits(rows, response_tokens + 1)
    mix = chosen.pretraining
    if mix is None:
        return update
    rows = min(rows, round(mix.examples_per_episode * chosen.minibatch)) or 1
    length = mix.tokens_per_example
    return max(update, policy.activations(rows, length) + policy.logits(rows, length))


def _rollout_bytes(chosen: PPOConfig, policy: Model, prompt: int) -> int:
    rows = min(chosen.sampling.batch_size, chosen.episodes_per_rollout)
    tokens = prompt + chosen.sampling.max_new_tokens
    merges = isinstance(chosen.rollouts, OwnRollouts) and chosen.rollouts.merged
    copied = policy.frozen * FLOAT if merges else 0
    return rows * tokens * policy.size.cache_bytes + policy.logits(rows, 1) + copied


def _ppo_work(
    chosen: PPOConfig, policy: Model, critic: Model, sizes: Lengths
) -> tuple[float, float]:
    """Return the operations, and the bytes of weights that decoding reads."""
    response_tokens = min(sizes.responses.mean, chosen.sampling.max_new_tokens)
    tokens = chosen.episodes * (sizes.ppo_prompts.mean + response_tokens)
    # policy: decoding, old log-probabilities, update; the reference; critic: values, update; score;
    # of these, critic and score are heads on other passes where models are shared
    epochs = chosen.inner_epochs
    flops = tokens * policy.size.flops * (3 * FORWARD + epochs * policy.training_cost)
    if isinstance(chosen.models, SeparateModels):
        flops += tokens * critic.size.flops * (FORWARD + epochs * critic.training_cost)
    if not isinstance(chosen.models, JointModels):
        flops += tokens * critic.size.flops * FORWARD
    mix = chosen.pretraining
    if mix is not None:
        extra = chosen.episodes * mix.examples_per_episode * mix.tokens_per_example
        flops += policy.training_cost * epochs * extra * policy.size.flops
    together = min(chosen.sampling.batch_size, chosen.episodes_per_rollout)
    steps = chosen.sampling.max_new_tokens * chosen.episodes / together
    return flops, steps * policy.size.parameters * FLOAT


def _saved(counts: ModelSize) -> int:
    """Return the bytes of a model on disk: its trained parameters."""
    return counts.trainable * FLOAT
