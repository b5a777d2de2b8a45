"""The memory, operations and disk of each training stage of an experiment.

Everything is counted for the longest row that the settings allow, so the memory is the peak. Frozen
weights have the bytes of their dtype, trained ones those of `precision.masters`, and Adam's moments
those of `optimizer`. Permanent items add up; of temporary ones (the KV cache during sampling,
activations during the update) the largest counts. Operations are two a weight and token forward and
four backward (Kaplan et al. 2020), two where the weights are frozen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.experiment import ExperimentConfig, ImportedRankings
from pipeline.estimate.lengths import Lengths
from pipeline.estimate.model_size import ModelSize, model_size, pass_cost
from pipeline.estimate.sharded import StageMemory
from pipeline.runs.manifest import checked_source
from pipeline.runs.stage import Source
from stages.adapters.config import Adaptation, Full, Probe
from stages.chunked_logprobs import LOGITS_AT_ONCE
from stages.config import OptimizerName
from stages.distributed.memory import Cost
from stages.distributed.optimizers import state_bytes
from stages.models import device
from stages.ppo.config import JointModels, OwnRollouts, PPOConfig, SeparateModels
from stages.precision import Numerics, resolved
from stages.reward.config import RewardConfig
from stages.sft.config import SFTConfig

FLOAT = 4  # bytes
# A quantised weight with its scales: NF4 has one of 8 bits for 64 weights, and one of 32 bits for
# 256 of those (Dettmers et al. 2023, section 3); int8 one of 32 bits for a row.
QUANTISED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
LOGIT_COPIES = 5  # of the logits, their gradients and what lies between, at the loss's peak
FORWARD = 1.0  # passes; a backward pass costs two of them, or one where the weights are frozen
NUM_CHECKPOINTS = 3  # of PPO: the last two, and the one that is being written


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """The memory of one stage, operations in matrix products, bytes that decoding reads, disk."""

    memory: StageMemory
    flops: float
    read_bytes: float  # weights read from memory, one pass a step of every batch that decodes
    disk: int


@dataclass(frozen=True, slots=True)
class Model:
    """A base under an adaptation, in the dtypes of a stage."""

    source: Source
    size: ModelSize
    adaptation: Adaptation
    numerics: Numerics
    checkpointing: bool
    optimizer: OptimizerName

    @classmethod
    def of(
        cls, name: str, stage: SFTConfig | RewardConfig | PPOConfig, adaptation: Adaptation
    ) -> "Model":
        """Build it from its config alone."""
        source = checked_source(name)
        return cls(
            source,
            model_size(source, adaptation),
            adaptation,
            resolved(stage.precision, device()),
            stage.activation_checkpointing,
            stage.optimizer,
        )

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
    def in_weights(self) -> int:
        """The bytes of a trained parameter, and of its gradient."""
        full = isinstance(self.adaptation, Full)
        return self.numerics.trained.dtype.itemsize if full else FLOAT

    def state_bytes(self, parameters: int) -> int:
        """Return the bytes of Adam's state for so many trained parameters."""
        full = isinstance(self.adaptation, Full)
        return state_bytes(parameters, self.optimizer, self.numerics.masters if full else "fp32")

    def rounding_bytes(self) -> int:
        """Return what a step on 16-bit weights takes: the largest in float32, and its gradient."""
        largest = self.size.vocabulary * self.size.width
        return 0 if self.in_weights == FLOAT else 2 * FLOAT * largest

    def frozen_bytes(self, parameters: int | None = None) -> int:
        """Return the bytes of frozen weights; by default of those of the base."""
        count = self.frozen if parameters is None else parameters
        wide, quantised = self.numerics.frozen.dtype.itemsize, self.numerics.frozen.quantised
        if quantised is None or isinstance(self.adaptation, Full):
            return count * wide
        linear = min(self.size.linear, count)
        return int(linear * QUANTISED_BYTES[quantised]) + (count - linear) * wide

    def weight_bytes(self) -> int:
        """Return the bytes of the model that is trained, base and adapter."""
        return self.frozen_bytes() + self.trained * self.in_weights

    def decoding_bytes(self) -> int:
        """Return the bytes of the copy in 16 bits that float32 masters are sampled with."""
        wide = self.numerics.compute.itemsize
        in_full = isinstance(self.adaptation, Full) and self.numerics.masters == "fp32"
        return self.size.parameters * wide if in_full and wide < FLOAT else 0

    def activations(self, rows: int, tokens: int) -> int:
        """Return the peak of a pass over so many rows, its way back with it, in bytes."""
        return self._cost(tokens).bytes(rows)

    def _cost(self, tokens: int) -> Cost:
        weights = self.numerics.of(self.adaptation)
        cost = pass_cost(
            self.source,
            self.adaptation,
            tokens,
            weights=weights.dtype,
            compute=self.numerics.compute,
            checkpointing=self.checkpointing,
        )
        # A quantised matrix is in the dtype of computing while it multiplies.
        matrix = self.size.largest * weights.dtype.itemsize if weights.quantised else 0
        return Cost(cost.fixed + matrix, cost.each)

    def cache(self, rows: int, tokens: int) -> int:
        """Return the keys and values of so many rows, in bytes."""
        return rows * tokens * self.size.cached * self.numerics.compute.itemsize

    def logits(self, rows: int, tokens: int) -> int:
        """Return the logits of so many rows and the tensors computed beside them, in bytes.

        Many are computed in chunks.
        """
        at_once = min(rows * tokens, max(1, LOGITS_AT_ONCE // self.size.vocabulary))
        return at_once * self.size.vocabulary * FLOAT * LOGIT_COPIES

    @property
    def training_cost(self) -> float:
        """The cost of a forward and a backward pass, in forward passes.

        A probe's backbone has no backward pass; checkpointed layers have a second forward pass.
        """
        if isinstance(self.adaptation, Probe):
            return FORWARD
        return (2.0 if self.frozen else 3.0) + (FORWARD if self.checkpointing else 0.0)


def stage_estimates(
    config: ExperimentConfig, sizes: Lengths, *, on_gpu: bool = False
) -> Iterator[StageEstimate]:
    """Yield the estimates of the stages that train, as far as the experiment has them."""
    if config.sft is not None:
        yield _sft("sft", config, config.sft, sizes, on_gpu=on_gpu)
    if config.reward is not None:
        yield _reward(config, config.reward, sizes)
    if config.ppo_init is not None:
        yield _sft("ppo-init", config, config.ppo_init, sizes, on_gpu=on_gpu)
    for name, chosen in (("ppo", config.ppo), ("ppo-ptx", config.ppo_ptx)):
        if chosen is not None:
            yield _ppo(name, config, chosen, sizes, on_gpu=on_gpu)


def reward_base(config: ExperimentConfig) -> str:
    """Return the model that the reward model starts from; SFT is as large as the base."""
    return config.model if config.reward_base in ("sft", "base") else config.reward_base


def _sft(
    name: str, config: ExperimentConfig, chosen: SFTConfig, sizes: Lengths, *, on_gpu: bool
) -> StageEstimate:
    model = Model.of(config.model, chosen, chosen.adaptation)
    texts = sizes.demonstrations
    rows = chosen.micro_batch_size or chosen.batch_size
    longest = min(texts.longest, chosen.max_tokens)
    tokens = chosen.epochs * texts.count * min(texts.mean, chosen.max_tokens)
    if chosen.pretraining is not None:
        longest = max(longest, chosen.pretraining.tokens_per_example)
        share = chosen.pretraining.share / (1.0 - chosen.pretraining.share)
        tokens += chosen.epochs * texts.count * share * chosen.pretraining.tokens_per_example
    memory = StageMemory(
        name,
        model.weight_bytes(),
        model.trained * model.in_weights,
        model.state_bytes(model.trained),
        # TRL computes the logits piece by piece.
        max(model.activations(rows, longest), model.rounding_bytes()),
        result=0 if on_gpu else 2 * model.weight_bytes(),
        masters=model.trained * FLOAT,
        least=rows == 1,
    )
    disk = (chosen.epochs + 1) * _saved(model) + memory.optimizer
    return StageEstimate(memory, model.training_cost * tokens * model.size.flops, 0.0, disk)


def _reward(config: ExperimentConfig, chosen: RewardConfig, sizes: Lengths) -> StageEstimate:
    model = Model.of(reward_base(config), chosen, chosen.adaptation)
    prompts = sizes.ranking_prompts
    most = max(setting.max_new_tokens for setting in config.sampling.settings)
    low, high = config.sampling.responses
    if isinstance(config.labeling, ImportedRankings) and config.labeling.tasks is None:
        low, high, most = 2, 2, chosen.max_tokens  # pairs, of any length
    each = min(prompts.longest + most, chosen.max_tokens)
    response_tokens = each - min(prompts.longest, each - 1)
    longest = min(prompts.longest, each) + high * response_tokens
    mean = prompts.mean + (low + high) / 2 * min(sizes.responses.mean, most)
    tokens = chosen.epochs * prompts.count * mean
    rows = 1 if chosen.micro_prompts == "auto" else chosen.micro_prompts  # the least, as in PPO
    mask = rows * high * response_tokens * each * FLOAT
    memory = StageMemory(
        "reward",
        model.weight_bytes() + model.head * FLOAT,
        model.trained_with_head * model.in_weights,
        model.state_bytes(model.trained_with_head),
        max(model.activations(rows, longest) + mask, model.rounding_bytes()),
        masters=model.trained_with_head * FLOAT,
        least=rows == 1,
    )
    disk = 2 * _saved(model) + memory.optimizer
    return StageEstimate(memory, model.training_cost * tokens * model.size.flops, 0.0, disk)


def _ppo(
    name: str, config: ExperimentConfig, chosen: PPOConfig, sizes: Lengths, *, on_gpu: bool
) -> StageEstimate:
    policy = Model.of(config.model, chosen, chosen.adaptation)
    critic = _critic_model(config, chosen, policy)
    own_critic = isinstance(chosen.models, SeparateModels)
    critic_trained = critic.trained_with_head if own_critic else policy.size.width
    copies = (chosen.ema_decay is not None) + (chosen.validation is not None)
    if chosen.pretraining is not None:
        copies += 2  # the two gradients that are compared at the first minibatch
    memory = StageMemory(
        name,
        policy.weight_bytes(),
        policy.trained * policy.in_weights + critic_trained * critic.in_weights,
        policy.state_bytes(policy.trained) + critic.state_bytes(critic_trained),
        max(
            _update_bytes(chosen, policy, critic, sizes.ppo_prompts.longest, on_gpu=on_gpu),
            policy.rounding_bytes(),
        ),
        _rollout_bytes(chosen, policy, sizes.ppo_prompts.longest),
        critic=critic_trained * critic.in_weights,
        reference=_copy_bytes(policy, policy.trained),
        reward=_reward_bytes(config, chosen, policy, critic),
        average=copies * policy.trained * FLOAT,
        policy=policy.weight_bytes(),
        masters=(policy.trained + critic_trained) * FLOAT,
        least=_rows(chosen) == chosen.responses_per_prompt,
        in_buckets=False,
    )
    if chosen.models.offload:  # both come back for the scores of a rollout
        scoring = memory.reference + memory.reward
        memory = replace(memory, reference=0, reward=0, average=0, cache=max(memory.cache, scoring))
    state = policy.trained * copies * FLOAT + critic_trained * FLOAT + memory.optimizer
    disk = NUM_CHECKPOINTS * (state + policy.trained * FLOAT) + _saved(policy) + _saved(critic)
    flops, read = _ppo_work(chosen, policy, critic, sizes)
    return StageEstimate(memory, flops, read, disk)


def _critic_model(config: ExperimentConfig, chosen: PPOConfig, policy: Model) -> Model:
    """Return the critic's size: the reward model's, or the policy's beside one made elsewhere."""
    if config.reward is None:
        return policy
    return Model.of(reward_base(config), chosen, config.reward.adaptation)


def _copy_bytes(model: Model, parameters: int) -> int:
    """Return the bytes of a frozen copy of what `model` trains: whole weights, or an adapter.

    Beside float32 masters its linear layers alone are in the dtype of computing.
    """
    if not isinstance(model.adaptation, Full):
        return parameters * FLOAT
    linear = min(model.size.linear, parameters)
    rest = model.numerics.trained.dtype.itemsize
    return linear * model.numerics.compute.itemsize + (parameters - linear) * rest


def _reward_bytes(config: ExperimentConfig, chosen: PPOConfig, policy: Model, critic: Model) -> int:
    """Return the bytes of the reward model beside the critic's and the policy's own."""
    if config.reward_model is not None:
        return _weight_bytes(config.reward_model)
    if isinstance(chosen.models, JointModels):
        return critic.trained_with_head * FLOAT
    own = 0 if _share_backbone(config, policy, critic) else critic.frozen_bytes()
    return own + _copy_bytes(critic, critic.trained_with_head)


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


def _update_bytes(
    chosen: PPOConfig, policy: Model, critic: Model, prompt: int, *, on_gpu: bool
) -> int:
    rows = _rows(chosen)
    response_tokens = chosen.sampling.max_new_tokens
    length = prompt + response_tokens
    update = policy.activations(rows, length) + policy.logits(rows, response_tokens + 1)
    if isinstance(chosen.models, SeparateModels):
        values = critic.activations(rows, length)
        # One after the other; but a CPU's heap has hardly room for one in what the other left.
        at_once = chosen.cached.first_forward or not on_gpu
        update = update + values if at_once else max(update, values)
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
    wide = policy.numerics.compute.itemsize
    copied = policy.frozen * wide if merges else policy.decoding_bytes()
    return policy.cache(rows, tokens) + policy.logits(rows, 1) + copied


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
    return flops, steps * (policy.decoding_bytes() or policy.weight_bytes())


def _saved(model: Model) -> int:
    """Return the bytes of a model on disk: its trained parameters."""
    return model.trained * FLOAT
