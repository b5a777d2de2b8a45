"""What each training stage of an experiment needs: memory, arithmetic and disk.

Everything is counted for the longest row that the settings let through, so the memory is the peak.
Arithmetic is two operations a weight and token forward and four backward (Kaplan et al. 2020), two
where the weights stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config.experiment import ExperimentConfig
from pipeline.estimate.anatomy import Anatomy, activation_bytes, anatomy
from pipeline.estimate.lengths import Lengths
from pipeline.estimate.memory import FLOAT, LOGIT_COPIES, Need, trained
from pipeline.runs.manifest import checked_source
from pipeline.runs.stage import Source
from stages.adapters.config import Adaptation, Probe
from stages.models import device
from stages.ppo.config import JointModels, OwnRollouts, PPOConfig, SeparateModels
from stages.reward.config import RewardConfig
from stages.sft.config import SFTConfig

FORWARD = 1.0  # passes; a backward pass costs two of them, or one where the weights stay
KEPT_CHECKPOINTS = 3  # of PPO: the last two, and the one that is being written


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one stage: memory, operations in matrix products, bytes that decoding reads, disk."""

    memory: Need
    flops: float
    read_bytes: float  # weights read from memory, one pass a step of every batch that decodes
    disk: int


@dataclass(frozen=True, slots=True)
class Model:
    """A base under an adaptation, and what one row of it keeps for the backward pass."""

    source: Source
    counts: Anatomy
    adaptation: Adaptation

    @classmethod
    def of(cls, name: str, adaptation: Adaptation) -> "Model":
        """Built from its config alone."""
        source = checked_source(name)
        return cls(source, anatomy(source, adaptation), adaptation)

    @property
    def moved(self) -> int:
        """Numbers that training a policy moves."""
        return self.counts.trainable

    @property
    def moved_with_head(self) -> int:
        """Numbers that training a reward model or critic moves; of a probe, the head alone."""
        return self.head + (0 if isinstance(self.adaptation, Probe) else self.moved)

    @property
    def head(self) -> int:
        """Numbers of a reward model's head."""
        width, chosen = self.counts.width, self.adaptation
        if isinstance(chosen, Probe) and chosen.kind == "mlp":
            return width + chosen.width * (2 * width + 1) + width
        return width

    @property
    def frozen(self) -> int:
        """Numbers of the base that stay."""
        return self.counts.parameters - self.counts.trainable

    @property
    def learning(self) -> float:
        """Forward passes that a forward and a backward pass cost; a probe's trunk has none back."""
        if isinstance(self.adaptation, Probe):
            return 1.0
        return 2.0 if self.frozen else 3.0

    def kept(self, rows: int, tokens: int) -> int:
        """Activations of so many rows, in bytes."""
        if isinstance(self.adaptation, Probe):
            return rows * tokens * self.counts.width * FLOAT
        return rows * activation_bytes(self.source, tokens)

    def logits(self, rows: int, tokens: int) -> int:
        """Logits of so many rows and what is computed beside them, in bytes."""
        return rows * tokens * self.counts.vocabulary * FLOAT * LOGIT_COPIES


def demands(config: ExperimentConfig, sizes: Lengths) -> Iterator[Demand]:
    """Of sft, reward, ppo-init, ppo and ppo-ptx, those that the experiment has."""
    yield _sft("sft", config, config.sft, sizes)
    yield _reward(config, config.reward, sizes)
    if config.ppo_init is not None:
        yield _sft("ppo-init", config, config.ppo_init, sizes)
    for name, chosen in (("ppo", config.ppo), ("ppo-ptx", config.ppo_ptx)):
        if chosen is not None:
            yield _ppo(name, config, chosen, sizes)


def reward_base(config: ExperimentConfig) -> str:
    """What the reward model starts from, as the name of a model; SFT is as large as the base."""
    return config.model if config.reward_base in ("sft", "base") else config.reward_base


def _sft(name: str, config: ExperimentConfig, chosen: SFTConfig, sizes: Lengths) -> Demand:
    model = Model.of(config.model, chosen.adaptation)
    counts, texts = model.counts, sizes.demonstrations
    rows = chosen.micro_batch_size or chosen.batch_size
    longest = min(texts.longest, chosen.max_tokens)
    tokens = chosen.epochs * texts.count * min(texts.mean, chosen.max_tokens)
    if chosen.pretraining is not None:
        longest = max(longest, chosen.pretraining.tokens_per_example)
        share = chosen.pretraining.share / (1.0 - chosen.pretraining.share)
        tokens += chosen.epochs * texts.count * share * chosen.pretraining.tokens_per_example
    weights, gradients, optimizer = trained(counts.parameters, counts.trainable)
    activations = model.kept(rows, longest)  # TRL computes the logits piece by piece
    memory = Need(
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
    return Demand(memory, model.learning * tokens * counts.flops, 0.0, disk)


def _reward(config: ExperimentConfig, chosen: RewardConfig, sizes: Lengths) -> Demand:
    model = Model.of(reward_base(config), chosen.adaptation)
    counts, prompts = model.counts, sizes.ranking_prompts
    most = max(setting.max_new_tokens for setting in config.sampling.settings)
    low, high = config.sampling.responses
    each = min(prompts.longest + most, chosen.max_tokens)
    said = each - min(prompts.longest, each - 1)
    longest = min(prompts.longest, each) + high * said
    mean = prompts.mean + (low + high) / 2 * min(sizes.responses.mean, most)
    tokens = chosen.epochs * prompts.count * mean
    moved = model.moved_with_head
    weights, gradients, optimizer = trained(counts.parameters, moved)
    rows = 1 if chosen.micro_prompts == "auto" else chosen.micro_prompts  # the least, as in PPO
    activations = model.kept(rows, longest) + rows * high * said * each * FLOAT  # and the mask
    memory = Need("reward", weights, gradients, optimizer, activations, least=rows == 1)
    disk = 2 * _saved(counts) + optimizer
    return Demand(memory, model.learning * tokens * counts.flops, 0.0, disk)


def _ppo(name: str, config: ExperimentConfig, chosen: PPOConfig, sizes: Lengths) -> Demand:
    policy = Model.of(config.model, chosen.adaptation)
    critic = Model.of(reward_base(config), config.reward.adaptation)
    own_critic = isinstance(chosen.models, SeparateModels)
    moved = policy.moved + (critic.moved_with_head if own_critic else policy.counts.width)
    _, gradients, optimizer = trained(0, moved)
    joint = isinstance(chosen.models, JointModels)
    reward_trunk = 0 if joint or _one_trunk(config, policy, critic) else critic.frozen
    copies = (chosen.ema_decay is not None) + (chosen.validation is not None)
    if chosen.pretraining is not None:
        copies += 2  # the two gradients that are compared at the first minibatch
    memory = Need(
        name,
        policy.counts.parameters * FLOAT,
        gradients,
        optimizer,
        _update_bytes(chosen, policy, critic, sizes.ppo_prompts.longest),
        _rollout_bytes(chosen, policy, sizes.ppo_prompts.longest),
        critic=(critic.moved_with_head if own_critic else policy.counts.width) * FLOAT,
        reference=policy.moved * FLOAT,
        reward=(reward_trunk + critic.moved_with_head) * FLOAT,
        average=copies * policy.moved * FLOAT,
        policy=policy.counts.parameters * FLOAT,
        least=_rows(chosen) == chosen.responses_per_prompt,
        in_buckets=False,
    )
    state = (policy.moved * copies + moved) * FLOAT + optimizer
    disk = KEPT_CHECKPOINTS * state + _saved(policy.counts) + _saved(critic.counts)
    flops, read = _ppo_work(chosen, policy, critic, sizes)
    return Demand(memory, flops, read, disk)


def _one_trunk(config: ExperimentConfig, policy: Model, critic: Model) -> bool:
    """Whether policy and reward model are sets on the same base, so that it is in memory once."""
    start = config.ppo_init or config.sft
    of_policy = "sft" if start.adaptation.family == "full" else "base"
    of_reward = of_policy if config.reward_base == "sft" else config.reward_base
    return bool(policy.frozen and critic.frozen) and of_policy == of_reward


def _rows(chosen: PPOConfig) -> int:
    """Episodes that an update holds at once; where memory decides, the least."""
    if chosen.micro_batch_size == "auto":
        return chosen.responses_per_prompt
    if chosen.cached.first_forward and chosen.minibatch == chosen.episodes_per_rollout:
        return chosen.minibatch  # whose graphs are there at once, however it is cut
    return chosen.micro_batch_size


def _update_bytes(chosen: PPOConfig, policy: Model, critic: Model, prompt: int) -> int:
    rows = _rows(chosen)
    said = chosen.sampling.max_new_tokens
    update = policy.kept(rows, prompt + said)
    if isinstance(chosen.models, SeparateModels):
        update += critic.kept(rows, prompt + said)
    update += policy.logits(rows, said + 1)
    mix = chosen.pretraining
    if mix is None:
        return update
    rows = min(rows, round(mix.examples_per_episode * chosen.minibatch)) or 1
    length = mix.tokens_per_example
    return max(update, policy.kept(rows, length) + policy.logits(rows, length))


def _rollout_bytes(chosen: PPOConfig, policy: Model, prompt: int) -> int:
    rows = min(chosen.sampling.batch_size, chosen.episodes_per_rollout)
    tokens = prompt + chosen.sampling.max_new_tokens
    merges = isinstance(chosen.rollouts, OwnRollouts) and chosen.rollouts.merged
    copied = policy.frozen * FLOAT if merges else 0
    return rows * tokens * policy.counts.cache_bytes + policy.logits(rows, 1) + copied


def _ppo_work(
    chosen: PPOConfig, policy: Model, critic: Model, sizes: Lengths
) -> tuple[float, float]:
    """Operations, and bytes of weights that decoding reads."""
    said = min(sizes.responses.mean, chosen.sampling.max_new_tokens)
    tokens = chosen.episodes * (sizes.ppo_prompts.mean + said)
    # policy: decoding, old log-probabilities, update; the reference; critic: values, update; score;
    # of these, critic and score are heads on other passes where models are shared
    epochs = chosen.inner_epochs
    flops = tokens * policy.counts.flops * (3 * FORWARD + epochs * policy.learning)
    if isinstance(chosen.models, SeparateModels):
        flops += tokens * critic.counts.flops * (FORWARD + epochs * critic.learning)
    if not isinstance(chosen.models, JointModels):
        flops += tokens * critic.counts.flops * FORWARD
    mix = chosen.pretraining
    if mix is not None:
        extra = chosen.episodes * mix.examples_per_episode * mix.tokens_per_example
        flops += policy.learning * epochs * extra * policy.counts.flops
    together = min(chosen.sampling.batch_size, chosen.episodes_per_rollout)
    steps = chosen.sampling.max_new_tokens * chosen.episodes / together
    return flops, steps * policy.counts.parameters * FLOAT


def _saved(counts: Anatomy) -> int:
    """Bytes of a model on disk: what moves, where that is not everything."""
    return counts.trainable * FLOAT
