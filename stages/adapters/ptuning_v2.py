"""P-tuning v2 (Liu et al. 2022): deep prompts, which are prefixes without a reparametrisation."""

from dataclasses import dataclass

from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.adapters.config import PTuningV2
from stages.adapters.prefix import PrefixConfig, PrefixModel, prefix_config
from stages.adapters.registration import register


@dataclass
class PTuningV2Config(PrefixConfig):
    """A prefix that is never reparametrised."""


class PTuningV2Model(PrefixModel):
    """PEFT's view of the family."""

    prefix = "ptuning_v2_"


register("ptuning_v2", PTuningV2Config, PTuningV2Model)


def create(model: PreTrainedModel, adaptation: PTuningV2, _: PreTrainedTokenizerBase) -> PeftModel:
    """Return the frozen model with a fresh prefix in every layer."""
    return get_peft_model(model, prefix_config(PTuningV2Config, model, adaptation.length))
