"""What each stage may be told. Frozen, unknown keys refused, no torch; a paper's value cites it."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

# One place to import every stage's settings from.
from stages.config_base import Config as Config
from stages.config_base import Fraction as Fraction
from stages.families import Adaptation as Adaptation
from stages.families import BitFit as BitFit
from stages.families import Bottleneck as Bottleneck
from stages.families import Full as Full
from stages.families import LoRA as LoRA
from stages.families import Prefix as Prefix
from stages.families import Probe as Probe
from stages.families import Prompt as Prompt
from stages.families import PTuningV2 as PTuningV2
from stages.families import Restricted as Restricted
from stages.families import dropout_of
from stages.ppo_rules import AdaptiveKL as AdaptiveKL
from stages.ppo_rules import FixedKL as FixedKL
from stages.ppo_rules import GoldCurve as GoldCurve
from stages.ppo_rules import Guards as Guards
from stages.ppo_rules import Joint as Joint
from stages.ppo_rules import Kept as Kept
from stages.ppo_rules import ModelSharing as ModelSharing
from stages.ppo_rules import PretrainingMix as PretrainingMix
from stages.ppo_rules import Rollback as Rollback
from stages.ppo_rules import Separate as Separate
from stages.ppo_rules import SharedCritic as SharedCritic
from stages.ppo_rules import ValidationRule as ValidationRule


class SamplingConfig(Config):
    """How responses are drawn. The defaults sample exactly the model's distribution."""

    temperature: NonNegativeFloat = 1.0  # 0 is greedy
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_new_tokens: PositiveInt = 64
    batch_size: PositiveInt = 64
    compiled: bool = False  # the decoding step, by torch.compile: for a GPU; see docs/ppo.md


class SupervisedMix(Config):
    """Pretraining text among the demonstrations: the model PPO starts from (appendix C.3)."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1  # of the examples
    tokens_per_example: PositiveInt = 256  # the paper does not say
    pack: bool = True  # documents joined and cut into equal examples; false: one document each


class SFTConfig(Config):
    """Stage one: fine-tuning on demonstrations (Ouyang et al. 2022, appendix C.1)."""

    epochs: PositiveInt = 16
    learning_rate: PositiveFloat = 9.65e-6
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt | None = None  # None: the whole batch at once
    dropout: Fraction = 0.2
    weight_decay: NonNegativeFloat = 0.0  # the paper does not say
    max_tokens: PositiveInt = 2048  # prompt and response; longer demonstrations are left out
    pretraining: SupervisedMix | None = None  # in the model PPO starts from, see appendix C.3
    result: Literal["best", "last"] = "best"  # which epoch's weights: chosen, or the last
    selection: SamplingConfig = (
        SamplingConfig()
    )  # responses by which a reward model picks the epoch
    adaptation: Adaptation = Full()
    trainer: dict[str, object] = {}  # further TrainingArguments, validated by name

    @model_validator(mode="after")
    def micro_batches_fill_a_batch(self) -> Self:
        """Check that the batch is a whole number of micro-batches."""
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) must divide "
                f"batch_size ({self.batch_size})"
            )
        return self


class UserSetsConfig(Config):
    """Sets of many users on one frozen base, trained together."""

    adaptation: Adaptation = LoRA(rank=8, alpha=16.0)
    steps: PositiveInt = 60  # each user's, over its own demonstrations again and again
    examples_per_step: PositiveInt = 4  # of each user
    users_per_batch: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3  # falls along a cosine to a tenth
    max_tokens: PositiveInt = 512  # prompt and response; longer demonstrations are left out

    @model_validator(mode="after")
    def a_set_is_small_and_without_dropout(self) -> Self:
        """Refuse what cannot be held once a user."""
        if isinstance(self.adaptation, Full):
            raise ValueError("adaptation.family is full; users' sets need a family that is small")
        if dropout := dropout_of(self.adaptation):
            raise ValueError(f"adaptation.dropout ({dropout}) must be 0 in users' sets")
        return self


class RewardConfig(Config):
    """Stage two: a reward model on rankings (section 3.5, appendix C.2)."""

    epochs: PositiveInt = 1
    learning_rate: PositiveFloat = 9e-6
    prompts_per_batch: PositiveInt = 64
    micro_prompts: PositiveInt | Literal["auto"] = "auto"  # a rank's in memory; as many as fit
    batch_element: Literal["prompt", "ranking"] = "prompt"  # see reward_models.ranking_loss
    learn_from_skips: list[str] = []  # reasons; what was rated before skipping is ordered by it
    scale: Literal["none", "demonstrations", "held_out"] = "none"  # whose scores get variance 1
    weight_decay: NonNegativeFloat = 0.0  # the paper does not say
    max_gradient_norm: PositiveFloat | None = 1.0  # the paper does not say
    held_out: Fraction = 0.1  # share of prompts kept for pair accuracy
    annotator_folds: Annotated[int, Field(ge=2)] | None = None  # groups never learnt from (4.1)
    prompt_folds: Annotated[int, Field(ge=2)] | None = None  # every prompt is held out once
    max_tokens: PositiveInt = 2048  # of a prompt with its response; longer ones are left out
    checkpoint_every: PositiveInt = 50  # steps
    adaptation: Adaptation = Full()
    trainer: dict[str, object] = {}

    @model_validator(mode="after")
    def what_scales_is_held_out(self) -> Self:
        """Refuse to scale by held-out scores where nothing is held out."""
        if self.scale == "held_out" and self.held_out == 0.0:
            raise ValueError("scale is 'held_out' but held_out is 0.0; expected a share above 0")
        return self

    @model_validator(mode="after")
    def micro_batches_fill_a_batch(self) -> Self:
        """Check that the batch is a whole number of micro-batches."""
        if self.micro_prompts != "auto" and self.prompts_per_batch % self.micro_prompts:
            raise ValueError(
                f"micro_prompts ({self.micro_prompts}) must divide "
                f"prompts_per_batch ({self.prompts_per_batch})"
            )
        return self


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


Rollouts = Annotated[OwnRollouts | VllmRollouts, Field(discriminator="kind")]


class PPOConfig(Config):
    """Stage three: PPO against the reward model, with or without pretraining (appendix C.4)."""

    episodes: PositiveInt = 256_000
    episodes_per_rollout: PositiveInt = 512
    responses_per_prompt: PositiveInt = 1  # several are cheaper: models read their prompt once
    minibatch: PositiveInt = 64  # episodes
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"  # a rank's in memory; as many as fit
    packed: bool = True  # models read episodes in one row without padding, where they can
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
    models: ModelSharing = Separate()  # which of the four read in one pass; see docs/ppo.md
    kept: Kept = Kept()  # of a rollout's passes for its update; see docs/ppo.md
    validation: ValidationRule | None = None  # None: the last policy is the result
    gold: GoldCurve | None = None
    guards: Guards = Guards()
    checkpoint_every: PositiveInt = 10  # iterations
    adaptation: Adaptation = Full()

    @property
    def iterations(self) -> int:
        """How many rollouts the episodes make; the last one is whole."""
        return -(-self.episodes // self.episodes_per_rollout)

    @model_validator(mode="after")
    def dropout_is_off(self) -> Self:
        """Refuse an adapter's dropout."""
        if dropout := dropout_of(self.adaptation):
            raise ValueError(
                f"adaptation.dropout ({dropout}) must be 0 in PPO: only without "
                "dropout does the ratio of new to old probabilities start at 1"
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
