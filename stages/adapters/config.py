"""The adapter families and their settings, told apart by `family`. No torch here.

A new family is a class here, named in `Adaptation`, and a file of the family's name beside this one
(see `stages.adapters.backbone`).
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from stages.config import Config, Fraction


class Rates(NamedTuple):
    """The factors by which a family multiplies the learning rates of a whole experiment."""

    policy: float = 1.0
    score: float = 1.0  # of the reward model and the critic


class Family(Config):
    """The settings that say which parameters a stage trains.

    Few parameters need larger steps than all of them. The factors were chosen by validation
    demonstrations and held-out pairs of the quickstart: tests/benchmarks/family_rates.py,
    docs/families.md.
    """

    family: str
    rates: ClassVar[Rates] = Rates()

    @property
    def num_positions(self) -> int:
        """The positions of a model's context that the family takes."""
        return 0

    @property
    def adapter_dropout(self) -> float:
        """The dropout inside the adapter."""
        return 0.0


class Full(Family):
    """Every parameter moves, or every one of the last `top_layers` layers."""

    family: Literal["full"] = "full"
    top_layers: PositiveInt | None = None


class Restricted(Family):
    """A family whose parameters are an adapter on a frozen model."""

    fixed: ClassVar[tuple[str, ...]] = ()  # settings that cannot change once there is an adapter

    def fixed_settings(self) -> dict[str, object]:
        """Return the settings that a saved adapter has to share, as its PEFT config names them."""
        return {name: vars(self)[name] for name in self.fixed}


class Probe(Restricted):
    """Only the head moves: the unembedding of a policy, the scalar head of a reward model.

    `kind` linear adds a matrix to the head, mlp a residual layer of `width` before it.
    """

    family: Literal["probe"] = "probe"
    kind: Literal["linear", "mlp"] = "linear"
    width: PositiveInt = 64
    pooling: Literal["last", "mean"] = "last"  # of a reward model: the states that its head gets
    rates: ClassVar = Rates(3.0, 10.0)

    def fixed_settings(self) -> dict[str, object]:
        """Return the width of the layer; a linear probe has none."""
        return {"width": self.width if self.kind == "mlp" else 0}


class LoRA(Restricted):
    """Low-rank updates of the linear layers (Hu et al. 2021), through PEFT."""

    family: Literal["lora"] = "lora"
    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Fraction = 0.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    rates: ClassVar = Rates(5.0, 5.0)

    @property
    def adapter_dropout(self) -> float:
        """The dropout before the low-rank update."""
        return self.dropout


class Bottleneck(Restricted):
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
    rates: ClassVar = Rates(5.0, 5.0)
    fixed: ClassVar = ("width", "activation", "scaling")

    @property
    def adapter_dropout(self) -> float:
        """The dropout before the down projection."""
        return self.dropout


class Prefix(Restricted):
    """Trained keys and values before every layer's own (Li and Liang 2021).

    With `reparametrise` an MLP of that width produces them in training; saved are the keys and
    values alone.
    """

    family: Literal["prefix"] = "prefix"
    length: PositiveInt = 16
    reparametrise: NonNegativeInt = 0
    rates: ClassVar = Rates(200.0, 20.0)
    reparametrised_rates: ClassVar = Rates(20.0, 20.0)  # an MLP needs smaller steps than keys do
    fixed: ClassVar = ("length",)


class Prompt(Restricted):
    """Trained input embeddings before the prompt (Lester et al. 2021), begun in one of three ways.

    vocabulary: embeddings of random words; text: those of `text`, such as the names of classes,
    again and again up to `length`; random: normal numbers with the deviation of the embeddings.
    """

    family: Literal["prompt"] = "prompt"
    length: PositiveInt = 20
    begin: Literal["vocabulary", "text", "random"] = "vocabulary"
    text: str = "Answer the question truthfully, politely and in short."
    rates: ClassVar = Rates(100.0, 30.0)
    fixed: ClassVar = ("length",)

    @property
    def num_positions(self) -> int:
        """Virtual tokens stand before the others."""
        return self.length


class PTuningV2(Restricted):
    """Deep prompts: a prefix in every layer without reparametrisation (Liu et al. 2022).

    Its own head for classification is a reward model's scalar head.
    """

    family: Literal["ptuning-v2"] = "ptuning-v2"
    length: PositiveInt = 16
    rates: ClassVar = Rates(200.0, 20.0)
    fixed: ClassVar = ("length",)


class BitFit(Restricted):
    """Only biases move (Ben Zaken et al. 2022).

    Where a model's layers have no biases, one is added to every linear layer, which is no longer
    the paper's method.
    """

    family: Literal["bitfit"] = "bitfit"
    rates: ClassVar = Rates(30.0, 3.0)


Adaptation = Annotated[
    Full | Probe | LoRA | Bottleneck | Prefix | Prompt | PTuningV2 | BitFit,
    Field(discriminator="family"),
]
FAMILIES: Mapping[str, type[Family]] = {
    kind.model_fields["family"].default: kind for kind in get_args(get_args(Adaptation)[0])
}


def rates_of(adaptation: Mapping[str, object]) -> Rates:
    """Return the factors for an `adaptation` of a config; 1 where it is not valid."""
    try:
        family: Family = TypeAdapter(Adaptation).validate_python(adaptation)
    except ValidationError:
        return Rates()
    if isinstance(family, Prefix) and family.reparametrise:
        return family.reparametrised_rates
    return family.rates
