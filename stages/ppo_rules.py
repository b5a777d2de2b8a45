"""The parts of stage three's config: ptx, KL penalty, guards, shared passes, what is watched."""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stages.config_base import Config, Fraction, Names, at_home


class PretrainingMix(Config):
    """The ptx term: gradients of the pretraining loss added to PPO's (equation 2, appendix C.4)."""

    coefficient: NonNegativeFloat = 27.8  # gamma; see `normaliser`
    examples_per_episode: PositiveFloat = 8.0
    tokens_per_example: PositiveInt = 256
    pack: bool = True  # documents joined and cut into equal examples; false: one document each
    normaliser: Literal["token", "sequence"] = (
        "token"  # mean over tokens, or sum over tokens per sequence
    )


class Separate(Config):
    """Four models, as in the paper: policy, reference, reward model, and a critic of its own."""

    kind: Literal["separate"] = "separate"


class SharedCritic(Config):
    """The value is a scalar head on the policy's own pass; its loss also moves the policy.

    The head itself moves by `critic_learning_rate`, whatever the coefficient.
    """

    kind: Literal["shared-critic"]
    value_coefficient: NonNegativeFloat = 0.1  # as in Ziegler et al.'s code; 0: the head alone


class Joint(Config):
    """`SharedCritic`, and the score is read off the reference's pass, which a probe allows."""

    kind: Literal["joint"]
    value_coefficient: NonNegativeFloat = 0.1


class Kept(Config):
    """What a rollout's passes leave for its update, so that it is computed once: time for memory.

    No number changes but by rounding.
    """

    first_pass: bool = False  # the graphs that the first minibatch goes back through; see docs
    lower_layers: bool = True  # what enters the lowest layer that moves, a vector a token


ModelSharing = Annotated[Separate | SharedCritic | Joint, Field(discriminator="kind")]


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
    """What changes when a sick PPO run goes back to its last good checkpoint, and how often."""

    times: PositiveInt = 3  # then the run stops
    learning_rate_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # policy's and critic's
    kl_factor: Annotated[float, Field(ge=1.0)] = 2.0  # of the KL coefficient


class Guards(Config):
    """When a PPO run counts as sick; `action` says whether it stops, warns, or is taken back."""

    action: Literal["stop", "warn", "rollback"] = "stop"
    rollback: Rollback = Rollback()  # with action rollback
    max_kl_nats_per_token: PositiveFloat = 2.0
    min_eos_rate: Fraction = 0.02  # share of responses that end by themselves
    min_entropy_nats: NonNegativeFloat = 0.005  # a token
    max_repetition: Fraction = 0.5  # share of a response's trigrams seen before in it
    min_distinct: Fraction = 0.02  # share of a rollout's responses that differ from one another
    max_length_growth: PositiveFloat = 4.0  # mean response length, in those of the first rollout

    @model_validator(mode="after")
    def a_rollback_has_an_effect(self) -> Self:
        """Refuse rollback settings where no rollback can be, and one that would change nothing."""
        if self.action != "rollback" and self.rollback != Rollback():
            raise ValueError(
                f"guards.rollback is set but guards.action is '{self.action}'; expected rollback"
            )
        if self.rollback.learning_rate_factor == 1.0 and self.rollback.kl_factor == 1.0:
            raise ValueError(
                "guards.rollback.learning_rate_factor and kl_factor are both 1: the run would go "
                "wrong again in the same way"
            )
        return self


class GoldCurve(Config):
    """A second opinion during PPO, for the curve that shows over-optimisation; it trains nothing.

    `by` is `judge` (the quickstart's, for its own prompts) or the folder of a reward model that
    PPO does not see, such as one trained on rankings of other annotators.
    """

    by: Annotated[str, AfterValidator(at_home), Names("model", words=("judge",))]
    every: PositiveInt = 5  # iterations
    num_prompts: PositiveInt = 200  # the first of the validation prompts, always the same


class ValidationRule(Config):
    """Choosing the policy by reward-model score on validation prompts, within a KL budget.

    The policy of an iteration with an alarm is no candidate; without any, the start is the result.
    """

    every: PositiveInt = 5  # iterations
    kl_budget_nats: PositiveFloat | None = None  # a response; beyond it the run ends
