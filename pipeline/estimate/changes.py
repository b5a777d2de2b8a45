"""Changes of an experiment's settings that take less memory, the mildest first."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config.experiment import STAGES, ExperimentConfig
from stages.adapters.config import Full, LoRA

Change = tuple[str, Mapping[str, Any]]  # as it is written in a config, and the stage's values
CHECKPOINTING: Change = ("activation_checkpointing: true", {"activation_checkpointing": True})
ADAM_8BIT: Change = ("optimizer: adamw_8bit", {"optimizer": "adamw_8bit"})
LORA: Change = ("adaptation: {family: lora}", {"adaptation": LoRA()})
BF16: Change = ("precision: {weights: bf16}", {"precision": {"weights": "bf16"}})
NF4: Change = ("precision: {weights: nf4}", {"precision": {"weights": "nf4"}})
STOCHASTIC: Change = (
    "precision: {compute: bf16, masters: stochastic}",
    {"precision": {"compute": "bf16", "masters": "stochastic"}},
)

OF_ADAPTERS = ([BF16], [CHECKPOINTING], [CHECKPOINTING, BF16], [CHECKPOINTING, NF4])
OF_FULL = (
    [CHECKPOINTING],
    [CHECKPOINTING, ADAM_8BIT],
    [CHECKPOINTING, ADAM_8BIT, STOCHASTIC],
    [LORA],
    *([LORA, *changes] for changes in OF_ADAPTERS),
)


def smaller(config: ExperimentConfig) -> Iterator[tuple[str, ExperimentConfig]]:
    """Yield what to write in every stage that trains, and the experiment with it."""
    stages = (vars(config)[name] for name in STAGES)
    full = any(one is not None and isinstance(one.adaptation, Full) for one in stages)
    for changes in OF_FULL if full else OF_ADAPTERS:
        words = [words for words, _ in changes]
        listed = ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1]
        yield listed, with_values(config, *(values for _, values in changes))


def with_values(config: ExperimentConfig, *values: Mapping[str, Any]) -> ExperimentConfig:
    """Return the experiment with these values in every stage that trains."""
    stages = {name: vars(config)[name] for name in STAGES}
    for each in values:
        precision = each.get("precision", {})
        for name, stage in stages.items():
            if stage is not None:
                own = stage.precision.model_copy(update=precision)
                stages[name] = stage.model_copy(update={**each, "precision": own})
    return config.model_copy(update=stages)


def on_a_card(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment as a GPU with bfloat16 would run it: `auto` is bf16 there."""
    stages = {name: vars(config)[name] for name in STAGES}
    for name, stage in stages.items():
        if stage is None:
            continue
        precision = stage.precision
        chosen = {key: "bf16" for key in ("weights", "compute") if vars(precision)[key] == "auto"}
        if precision.weights in ("fp32", "fp16"):
            chosen.pop("compute", None)  # frozen weights compute in their own dtype
        own = precision.model_copy(update=chosen)
        stages[name] = stage.model_copy(update={"precision": own})
    return config.model_copy(update=stages)
