"""Families that PEFT does not have are known to it under names of their own."""

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from reward_models.compat import peft_type
from stages.adapters import backbone
from stages.adapters.bitfit import BitFitConfig, BitFitModel
from stages.adapters.config import FAMILIES
from stages.adapters.registration import register


@pytest.mark.parametrize("name", ["PROBE", "BOTTLENECK", "PREFIX", "SOFT_PROMPT", "BITFIT"])
def test_pefts_closed_enumeration_has_the_family_like_a_member_of_its_own(name: str) -> None:
    member = peft_type(name)
    assert member is PeftType(name) is PeftType[name] is getattr(PeftType, name)
    assert member == name
    assert member in list(PeftType)
    assert member in PEFT_TYPE_TO_CONFIG_MAPPING


def test_pefts_own_types_stay_what_they_are() -> None:
    assert peft_type("LORA") is PeftType.LORA


def test_every_family_has_a_module_of_its_name() -> None:
    assert {*backbone._MODULES, "full"} == set(FAMILIES)


@pytest.mark.parametrize("name", ["ia3", "bottleneck"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is .* expected a new name"):
        register(name, BitFitConfig, BitFitModel)
    assert BitFitConfig.registered is PeftType["BITFIT"]
