"""Which parameters a stage may move: eight families, told apart by `family`. No torch here."""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from stages.config import Config, Fraction


class Full(Config):
    """Every parameter moves, or every one of the last `top_layers` layers."""

    family: Literal["full"] = "full"
    top_layers: PositiveInt | None = None


class Probe(Config):
    """Only the head moves: the unembedding of a policy, the scalar head of a reward model.

    `kind` linear adds a matrix to the head, mlp a residual layer of `width` before it.
    """

    family: Literal["probe"] = "probe"
    kind: Literal["linear", "mlp"] = "linear"
    width: PositiveInt = 64
    pooling: Literal["last", "mean"] = "last"  # of a reward model: where it reads its score


class LoRA(Config):
    """Low-rank updates of the linear layers (Hu et al. 2021), through PEFT."""

    family: Literal["lora"] = "lora"
    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Fraction = 0.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class Bottleneck(Config):
    """x + scaling * W_up s(W_down x) after sublayers (Houlsby et al. 2019).

    houlsby: after attention and after the MLP; pfeiffer: after the MLP only (Pfeiffer et al. 2021);
    parallel: beside the MLP, from the MLP's input (He et al. 2022).
    """

    family: Literal["bottleneck"] = "bottleneck"
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    width: PositiveInt = 32
    activation: str = "gelu"
    scaling: PositiveFloat = 1.0
    dropout: Fraction = 0.0


class Prefix(Config):
    """Trained keys and values before every layer's own (Li and Liang 2021).

    With `reparametrise` they come from an MLP of that width while they are trained; what is saved
    are the keys and values it gives.
    """

    family: Literal["prefix"] = "prefix"
    length: PositiveInt = 16
    reparametrise: NonNegativeInt = 0


class Prompt(Config):
    """Trained input embeddings before the prompt (Lester et al. 2021), begun in one of three ways.

    vocabulary: embeddings of random words; text: those of `text`, such as the names of classes,
    again and again up to `length`; random: normal numbers as spread as the embeddings are.
    """

    family: Literal["prompt"] = "prompt"
    length: PositiveInt = 20
    begin: Literal["vocabulary", "text", "random"] = "vocabulary"
    text: str = "Answer the question truthfully, politely and in short."


class PTuningV2(Config):
    """Deep prompts: a prefix in every layer without reparametrisation (Liu et al. 2022).

    Its own head for classification is a reward model's scalar head.
    """

    family: Literal["ptuning-v2"] = "ptuning-v2"
    length: PositiveInt = 16


class BitFit(Config):
    """Only biases move (Ben Zaken et al. 2022).

    Where a model's layers have no biases, one is added to every linear layer: that is no longer
    the paper's method, and what it trains is told.
    """

    family: Literal["bitfit"] = "bitfit"


Restricted = Probe | LoRA | Bottleneck | Prefix | Prompt | PTuningV2 | BitFit
Adaptation = Annotated[Full | Restricted, Field(discriminator="family")]


class Rates(NamedTuple):
    """What a whole experiment under one family multiplies its learning rates by."""

    policy: float
    score: float  # of the reward model and the critic


# Few numbers want larger steps than all of them. Chosen by validation demonstrations and held-out
# pairs of the quickstart: tests/benchmarks/family_rates.py, docs/families.md.
RATES: Mapping[str, Rates] = {
    "full": Rates(1.0, 1.0),
    "probe": Rates(3.0, 10.0),
    "lora": Rates(5.0, 5.0),
    "bottleneck": Rates(5.0, 5.0),
    "prefix": Rates(200.0, 20.0),
    "prompt": Rates(100.0, 30.0),
    "ptuning-v2": Rates(200.0, 20.0),
    "bitfit": Rates(30.0, 3.0),
}
REPARAMETRISED = Rates(20.0, 20.0)  # a prefix's MLP is weights, which want smaller steps than keys


def rates_of(adaptation: Mapping[str, object]) -> Rates:
    """The factors for an `adaptation` of a config; 1 for a family that there is not."""
    if adaptation.get("family") == "prefix" and adaptation.get("reparametrise"):
        return REPARAMETRISED
    return RATES.get(str(adaptation.get("family")), Rates(1.0, 1.0))


def dropout_of(adaptation: Full | Restricted) -> float:
    """The dropout of the set itself."""
    return adaptation.dropout if isinstance(adaptation, LoRA | Bottleneck) else 0.0
