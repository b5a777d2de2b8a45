"""The settings of stage three (Ouyang et al. 2022, appendix C.4)."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stages.adapters.config import Adaptation, Full, LoRA
from stages.config import Config, ExternalName, Fraction, OptimizerName, expand_home
from stages.generation.config import SamplingConfig
from stages.precision_config import Precision, require_trainable


class PretrainingMix(Config):
    """The ptx term: gradients of the pretraining loss added to PPO's (equation 2, appendix C.4)."""

    coefficient: NonNegativeFloat = 27.8  # gamma; see `normaliser`
    examples_per_episode: PositiveFloat = 8.0
    tokens_per_example: PositiveInt = 256
    pack: bool = True  # documents joined and cut into equal examples; false: one document each
    normaliser: Literal["token", "sequence"] = (
        "token"  # mean over tokens, or sum over tokens per sequence
    )


class SeparateModels(Config):
    """Four models, as in the paper: policy, reference, reward model, and a critic of its own."""

    kind: Literal["separate"] = "separate"
    offload: bool = False  # reference, reward model and average wait in host memory; family full


class SharedCritic(Config):
    """The critic is a scalar head on the policy's own states; its loss also trains the policy.

    The head itself is trained by `critic_learning_rate`, whatever the coefficient.
    """

    kind: Literal["shared-critic"]
    offload: bool = False
    value_coefficient: NonNegativeFloat = 0.1  # as in Ziegler et al.'s code; 0: the head alone


class JointModels(Config):
    """`SharedCritic`, and the score comes from the reference's states, which a probe allows."""

    kind: Literal["joint"]
    offload: bool = False
    value_coefficient: NonNegativeFloat = 0.1


ModelSharing = Annotated[SeparateModels | SharedCritic | JointModels, Field(discriminator="kind")]


class Cached(Config):
    """Results of a rollout's forward passes that its update uses again: memory for time.

    Nothing changes but rounding.
    """

    renamed: ClassVar = {"first_pass": "first_forward"}

    first_forward: bool = False  # the graphs that the first minibatch goes back through; see docs
    lower_layers: bool = True  # the states below the lowest trained layer, a vector a token


class FixedKL(Config):
    """The coefficient stays as it is, as in the paper."""

    kind: Literal["fixed"] = "fixed"
    coefficient: NonNegativeFloat = 0.02  # appendix C.4


class AdaptiveKL(Config):
    """The proportional controller of Ziegler et al. 2019, section 2.2."""

    kind: Literal["adaptive"] = "adaptive"
    coefficient: PositiveFloat = 0.02
    target_nats: PositiveFloat = 6.0
    horizon_episodes: PositiveInt = 10_000


class Rollback(Config):
    """The changes with which an unstable run returns to its last good checkpoint."""

    times: PositiveInt = 3  # then the run stops
    learning_rate_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # policy's and critic's
    kl_factor: Annotated[float, Field(ge=1.0)] = 2.0  # of the KL coefficient


class HealthChecks(Config):
    """Limits of a stable run; `action` is what happens beyond them."""

    action: Literal["stop", "warn", "rollback"] = "stop"
    rollback: Rollback = Rollback()  # with action rollback
    max_kl_nats_per_token: PositiveFloat = 2.0
    min_eos_rate: Fraction = 0.02  # share of responses that end with EOS
    min_entropy_nats: NonNegativeFloat = 0.005  # a token
    max_repetition: Fraction = 0.5  # share of a response's trigrams that occur earlier in it
    min_distinct: Fraction = 0.02  # share of a rollout's responses that differ from one another
    max_length_growth: PositiveFloat = 4.0  # mean response length over the first rollout's

    @model_validator(mode="after")
    def a_rollback_has_an_effect(self) -> Self:
        """Refuse rollback settings where no rollback can be, and one that would change nothing."""
        if self.action != "rollback" and self.rollback != Rollback():
            raise ValueError(
                f"health.rollback is set but health.action is '{self.action}'; expected rollback"
            )
        if self.rollback.learning_rate_factor == 1.0 and self.rollback.kl_factor == 1.0:
            raise ValueError(
                "health.rollback.learning_rate_factor and kl_factor are both 1: the run would go "
                "wrong again in the same way"
            )
        return self


class Overoptimization(Config):
    """A gold reward measured during PPO, for the curve that shows overoptimization.

    `gold_reward` is `judge` (the quickstart's, for its own prompts) or the folder of a reward model
    that PPO does not see, such as one trained on rankings of other annotators. It trains nothing.
    """

    renamed: ClassVar = {"by": "gold_reward"}

    gold_reward: Annotated[
        str, AfterValidator(expand_home), ExternalName("model", words=("judge",))
    ]
    every: PositiveInt = 5  # iterations
    num_prompts: PositiveInt = 200  # the first of the validation prompts, always the same


class Validation(Config):
    """The choice of the policy by reward-model score on validation prompts, within a KL budget.

    The policy of an iteration with an alarm is no candidate; without any, the start is the result.
    """

    every: PositiveInt = 5  # iterations
    kl_budget_nats: PositiveFloat | None = None  # a response; beyond it the run ends


class OwnRollouts(Config):
    """Responses are sampled in the training process."""

    kind: Literal["own"] = "own"
    merged: bool = False  # of LoRA: sample with it added to a copy of the weights, which is quicker


class VllmRollouts(Config):
    """Responses come from a vLLM server, to which the policy is sent before every rollout."""

    kind: Literal["vllm"]
    url: str  # http://host:8000
    parallel: PositiveInt = 64  # requests at once
    timeout_s: PositiveFloat = 600.0
    transfer: Literal["folder", "nccl"] = "folder"  # of the weights of full fine-tuning
    sleep: bool = False  # the server gives back device memory while it does not sample
    # Tokens' losses are weighted with the policy's probability over the server's, up to this.
    importance_cap: Annotated[float, Field(ge=1.0)] | None = None

    @model_validator(mode="after")
    def a_server_that_sleeps_gets_a_folder(self) -> Self:
        """Refuse NCCL between two programs that share a device."""
        if self.sleep and self.transfer == "nccl":
            raise ValueError(
                "rollouts.sleep is true, for a server on the training device, which NCCL cannot "
                "send to; expected rollouts.transfer: folder"
            )
        return self


Rollouts = Annotated[OwnRollouts | VllmRollouts, Field(discriminator="kind")]


class PPOConfig(Config):
    """Stage three: PPO against the reward model, with or without pretraining (appendix C.4)."""

    renamed: ClassVar = {"kept": "cached", "gold": "overoptimization", "guards": "health"}

    episodes: PositiveInt = 256_000
    episodes_per_rollout: PositiveInt = 512
    responses_per_prompt: PositiveInt = 1  # several are cheaper: their prompt is computed once
    minibatch: PositiveInt = 64  # episodes
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"  # a rank's in memory; as many as fit
    packed: bool = True  # episodes lie in one row without padding, where the models allow it
    inner_epochs: PositiveInt = 1
    learning_rate: PositiveFloat = 9e-6
    critic_learning_rate: PositiveFloat = 9e-6
    warmup_iterations: PositiveInt = 10  # from a tenth of the peak
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat | None = 0.2  # the paper does not say; Ziegler et al.'s code has 0.2
    gamma: Fraction = 1.0
    lam: Fraction = 0.95  # the paper does not say; Ziegler et al.'s code has 0.95
    kl: Annotated[FixedKL | AdaptiveKL, Field(discriminator="kind")] = FixedKL()
    score_clip: PositiveFloat | None = None  # scores are cut to [-score_clip, score_clip]
    missing_eos_score: float | None = None  # replaces the score of a response that did not end
    whiten_advantages: bool = True
    max_gradient_norm: PositiveFloat | None = 1.0
    ema_decay: Fraction | None = 0.992
    pretraining: PretrainingMix | None = None
    sampling: SamplingConfig = SamplingConfig()
    rollouts: Rollouts = OwnRollouts()
    models: ModelSharing = SeparateModels()  # which of the four share a forward pass
    cached: Cached = Cached()  # of a rollout, for its update; see docs/ppo.md
    validation: Validation | None = None  # None: the last policy is the result
    overoptimization: Overoptimization | None = None
    health: HealthChecks = HealthChecks()
    checkpoint_every: PositiveInt = 10  # iterations
    optimizer: OptimizerName = "adamw"  # moments in 32 bits, in 8, or in 8 and paged to the host
    activation_checkpointing: bool = False  # layers keep their inputs alone: slower, less memory
    attn_implementation: str | None = None  # sdpa, eager, flash_attention_2; null: as loaded
    adaptation: Adaptation = Full()
    precision: Precision = Precision()

    @property
    def iterations(self) -> int:
        """The number of rollouts; the last one is whole."""
        return -(-self.episodes // self.episodes_per_rollout)

    @property
    def importance_cap(self) -> float | None:
        """The largest importance weight of a token; None: samples are not weighted."""
        return self.rollouts.importance_cap if isinstance(self.rollouts, VllmRollouts) else None

    @model_validator(mode="after")
    def dropout_is_off(self) -> Self:
        """Refuse an adapter's dropout."""
        if dropout := self.adaptation.adapter_dropout:
            raise ValueError(
                f"adaptation.dropout ({dropout}) must be 0 in PPO: only without "
                "dropout does the ratio of new to old probabilities start at 1"
            )
        return self

    @model_validator(mode="after")
    def what_is_offloaded_is_idle(self) -> Self:
        """Refuse to offload frozen weights that the policy uses all the time."""
        if self.models.offload and not isinstance(self.adaptation, Full):
            raise ValueError(
                f"models.offload is true but adaptation.family is {self.adaptation.family}: the "
                "models share their frozen weights, and none of these is ever idle; expected full"
            )
        return self

    @model_validator(mode="after")
    def what_is_merged_is_lora(self) -> Self:
        """Refuse to merge what is no LoRA."""
        merged = isinstance(self.rollouts, OwnRollouts) and self.rollouts.merged
        if merged and not isinstance(self.adaptation, LoRA):
            raise ValueError(
                f"rollouts.merged is true but adaptation.family is {self.adaptation.family}; "
                "expected lora"
            )
        return self

    @model_validator(mode="after")
    def adapters_are_sent_as_files(self) -> Self:
        """Refuse a way for weights where an adapter is sent."""
        nccl = isinstance(self.rollouts, VllmRollouts) and self.rollouts.transfer == "nccl"
        if nccl and not isinstance(self.adaptation, Full):
            raise ValueError(
                f"rollouts.transfer is nccl but adaptation.family is {self.adaptation.family}; "
                "expected full: an adapter is sent as a folder"
            )
        return self

    @model_validator(mode="after")
    def minibatches_fill_a_rollout(self) -> Self:
        """Refuse a rollout that leaves a smaller last minibatch."""
        if self.episodes_per_rollout % self.minibatch:
            raise ValueError(
                f"minibatch ({self.minibatch}) must divide "
                f"episodes_per_rollout ({self.episodes_per_rollout})"
            )
        return self

    @model_validator(mode="after")
    def responses_of_a_prompt_stay_together(self) -> Self:
        """Refuse batches that would tear apart what shares a prompt."""
        for name, size in (
            ("minibatch", self.minibatch),
            ("micro_batch_size", self.micro_batch_size),
        ):
            if size != "auto" and size % self.responses_per_prompt:
                raise ValueError(
                    f"{name} ({size}) must be a multiple of "
                    f"responses_per_prompt ({self.responses_per_prompt})"
                )
        return self

    @model_validator(mode="after")
    def rollouts_sample_the_trained_distribution(self) -> Self:
        """Refuse greedy and nucleus sampling."""
        if self.sampling.top_p != 1.0 or self.sampling.temperature == 0.0:
            raise ValueError(
                f"sampling.top_p ({self.sampling.top_p}) must be 1 and sampling.temperature "
                f"({self.sampling.temperature}) above 0: PPO must sample what it trains"
            )
        return self

    @model_validator(mode="after")
    def what_is_trained_is_not_quantised(self) -> Self:
        """Refuse full fine-tuning of quantised weights."""
        require_trainable(self.precision, self.adaptation.family)
        return self
