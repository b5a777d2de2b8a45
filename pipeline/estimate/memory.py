"""The memory and disk that each training stage needs, on one process or sharded over several.

Weights, gradients, Adam's two moments and the moving average are float32. What is resident adds up;
of what comes and goes (keys and values while responses are sampled, activations during the update)
the largest counts, for the longest row that the settings let through.
"""

from dataclasses import dataclass, replace

from pipeline.config.experiment import ExperimentConfig
from pipeline.estimate.lengths import Lengths
from pipeline.estimate.model_size import FLOAT, ModelSize
from pipeline.launch.options import Sharding
from stages.models import device
from stages.ppo.config import JointModels, OwnRollouts, PPOConfig, SeparateModels
from stages.reward.config import RewardConfig
from stages.sft.config import SFTConfig

SHARDINGS: tuple[Sharding, ...] = (
    "none",
    "ddp",
    "zero1",
    "zero2",
    "zero3",
    "zero3-offload",
    "fsdp2",
)
RECOMMENDED: tuple[Sharding, ...] = ("zero2", "zero3", "zero3-offload")  # the simplest first
MAX_DEVICES = 1024
MOMENTS = 2  # of Adam, a parameter
PPO_CHECKPOINTS = 3  # the last two, and the one that is being written


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by item, on the device of one rank.

    `weights` are of the trained model with its base, `reward` has its base only where that is
    another one; `reference` and `critic` are what these have of their own. `policy` is PPO's whole
    policy, which has to be gathered to sample.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int  # with the logits: the larger of update and pretraining step
    cache: int = 0  # keys and values with the logits, while responses are sampled
    critic: int = 0
    reference: int = 0
    reward: int = 0
    average: int = 0  # and other copies of the policy's trained parameters
    policy: int = 0
    result: int = 0  # the chosen weights, loaded once more to be written, on the CPU
    smallest: bool = False  # no smaller micro-batch is possible
    in_buckets: bool = True  # data parallelism reduces gradients in buckets of their own
    gathered: int = 0  # the rest of a sharded policy, while responses are sampled
    host: int = 0  # on the CPU, where something was offloaded, for all ranks of one host

    @property
    def resident(self) -> int:
        """The bytes that are there all the time, gradients aside."""
        models = self.weights + self.critic + self.reference + self.reward
        return models + self.optimizer + self.average

    @property
    def peak(self) -> int:
        """The most at any time."""
        passing = max(self.activations, self.cache + self.gathered)
        return self.resident + max(self.gradients + passing, self.result)

    def per_rank(self, sharding: Sharding, ranks: int) -> "Memory":
        """Return a rank's share (Rajbhandari et al. 2020, section 5); its activations are as here.

        DeepSpeed keeps a float32 copy of the weights it updates beside those it computes with;
        FSDP2 does not.
        """
        if sharding == "none" or ranks == 1:
            return self
        if sharding == "ddp":
            return replace(self, gradients=self.gradients * (2 if self.in_buckets else 1))
        with_masters = self.optimizer + self.optimizer // MOMENTS
        shard = replace(self, optimizer=with_masters // ranks)
        if sharding == "zero1":
            return shard
        shard = replace(shard, gradients=self.gradients // ranks)
        if sharding == "zero2":
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
        if sharding == "zero3":
            return shard
        if sharding == "fsdp2":
            return replace(shard, optimizer=self.optimizer // ranks)
        offloaded = shard.resident - shard.average + shard.gradients
        shard = replace(shard, weights=0, critic=0, reference=0, reward=0, optimizer=0, gradients=0)
        return replace(shard, gathered=self.policy, host=offloaded * ranks)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The least change under which a stage fits: its sharding, and the number of ranks."""

    sharding: Sharding
    ranks: int
    memory: Memory


def recommend(memory: Memory, room: int, devices: int) -> Recommendation | None:
    """Return the simplest sharding in which a rank's share fits `room`; None if none does.

    With the devices there are, else with the smallest power of two of them, up to MAX_DEVICES.
    """
    if memory.peak <= room:
        return Recommendation("none", 1, memory)
    more = [2**power for power in range(1, 20) if devices < 2**power <= MAX_DEVICES]
    for ranks in (devices, *more):
        for sharding in RECOMMENDED:
            share = memory.per_rank(sharding, ranks)
            if ranks > 1 and share.peak <= room:
                return Recommendation(sharding, ranks, share)
    return None


def trained_bytes(parameters: int, trainable: int) -> tuple[int, int, int]:
    """Return the bytes of weights, gradients and optimizer states."""
    return parameters * FLOAT, trainable * FLOAT, trainable * FLOAT * MOMENTS


def sft_memory(model: ModelSize, config: SFTConfig, lengths: Lengths) -> tuple[Memory, int]:
    """Return the memory and the disk of supervised fine-tuning."""
    rows = config.micro_batch_size or config.batch_size
    longest = min(lengths.demonstrations.longest, config.max_tokens)
    if config.pretraining is not None:
        longest = max(longest, config.pretraining.tokens_per_example)
    weights, gradients, optimizer = trained_bytes(model.parameters, model.trainable)
    memory = Memory(
        weights,
        gradients,
        optimizer,
        model.activations(rows, longest),  # TRL computes the logits piece by piece
        result=2 * weights if device().type == "cpu" else 0,
        smallest=rows == 1,
    )
    return memory, (config.epochs + 1) * _saved(model) + optimizer


def reward_memory(
    model: ModelSize, config: RewardConfig, experiment: ExperimentConfig, lengths: Lengths
) -> tuple[Memory, int]:
    """Return the memory and the disk of training the reward model."""
    prompt = lengths.ranking_prompts.longest
    _, responses = experiment.sampling.responses
    new_tokens = max(setting.max_new_tokens for setting in experiment.sampling.settings)
    one = min(prompt + new_tokens, config.max_tokens)
    response = one - min(prompt, one - 1)
    longest = min(prompt, one) + responses * response
    weights, gradients, optimizer = trained_bytes(model.parameters, model.trainable_with_head)
    rows = 1 if config.micro_prompts == "auto" else config.micro_prompts  # the least, as in PPO
    mask = rows * responses * response * one * FLOAT
    activations = model.activations(rows, longest) + mask
    memory = Memory(weights, gradients, optimizer, activations, smallest=rows == 1)
    return memory, 2 * _saved(model) + optimizer


def ppo_memory(
    policy: ModelSize,
    critic: ModelSize,
    config: PPOConfig,
    experiment: ExperimentConfig,
    lengths: Lengths,
) -> tuple[Memory, int]:
    """Return the memory and the disk of PPO."""
    separate = isinstance(config.models, SeparateModels)
    critic_trains = critic.trainable_with_head if separate else policy.width
    trained = policy.trainable + critic_trains
    _, gradients, optimizer = trained_bytes(0, trained)
    joint = isinstance(config.models, JointModels)
    shared = joint or _share_backbone(experiment, policy, critic)
    copies = (config.ema_decay is not None) + (config.validation is not None)
    if config.pretraining is not None:
        copies += 2  # the two gradients that are compared at the first minibatch
    prompt = lengths.ppo_prompts.longest
    memory = Memory(
        policy.parameters * FLOAT,
        gradients,
        optimizer,
        _update_bytes(config, policy, critic, prompt),
        _rollout_bytes(config, policy, prompt),
        critic=critic_trains * FLOAT,
        reference=policy.trainable * FLOAT,
        reward=((0 if shared else critic.frozen) + critic.trainable_with_head) * FLOAT,
        average=copies * policy.trainable * FLOAT,
        policy=policy.parameters * FLOAT,
        smallest=_episodes_at_once(config) == config.responses_per_prompt,
        in_buckets=False,
    )
    state = (policy.trainable * copies + trained) * FLOAT + optimizer
    return memory, PPO_CHECKPOINTS * state + _saved(policy) + _saved(critic)


def _share_backbone(experiment: ExperimentConfig, policy: ModelSize, critic: ModelSize) -> bool:
    """Return true where policy and reward model are adapters on the same base, in memory once."""
    start = experiment.ppo_init or experiment.sft
    policy_base = "sft" if start.adaptation.family == "full" else "base"
    reward_base = policy_base if experiment.reward_base == "sft" else experiment.reward_base
    return bool(policy.frozen and critic.frozen) and policy_base == reward_base


def _episodes_at_once(config: PPOConfig) -> int:
    """Return the episodes of one forward pass; where memory decides, the least."""
    if config.micro_batch_size == "auto":
        return config.responses_per_prompt
    if config.cached.first_forward and config.minibatch == config.episodes_per_rollout:
        return config.minibatch  # whose graphs are there at once, however it is cut
    return config.micro_batch_size


def _update_bytes(config: PPOConfig, policy: ModelSize, critic: ModelSize, prompt: int) -> int:
    rows = _episodes_at_once(config)
    response = config.sampling.max_new_tokens
    update = policy.activations(rows, prompt + response)
    if isinstance(config.models, SeparateModels):
        update += critic.activations(rows, prompt + response)
    update += policy.logits(rows, response + 1)
    mix = config.pretraining
    if mix is None:
        return update
    rows = min(rows, round(mix.examples_per_episode * config.minibatch)) or 1
    tokens = mix.tokens_per_example
    return max(update, policy.activations(rows, tokens) + policy.logits(rows, tokens))


def _rollout_bytes(config: PPOConfig, policy: ModelSize, prompt: int) -> int:
    rows = min(config.sampling.batch_size, config.episodes_per_rollout)
    tokens = prompt + config.sampling.max_new_tokens
    merges = isinstance(config.rollouts, OwnRollouts) and config.rollouts.merged
    merged = policy.frozen * FLOAT if merges else 0
    return rows * tokens * policy.cache_bytes + policy.logits(rows, 1) + merged


def _saved(model: ModelSize) -> int:
    """Return the bytes of a saved model: its trained parameters."""
    return model.trainable * FLOAT
