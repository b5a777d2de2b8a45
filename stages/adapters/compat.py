"""The touches of private parts of PEFT and torch that families need.

It is here because `stages/distributed` is a floor above. tests/stages/adapters/test_registration.py
fails where a new version differs.
"""

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor


def peft_type(name: str) -> PeftType:
    """Return PEFT's type of that name, adding it where PEFT has none.

    PEFT 0.21: `register_peft_method` refuses a name that `PeftType` lacks, and the enumeration is
    closed, so a new member is put in by hand.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType)  # type: ignore[attr-defined]
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


def move_to_base_device(layer: BaseTunerLayer, name: str) -> None:
    """Move an adapter to the device and precision of the layer it adapts (PEFT 0.21)."""
    layer._move_adapter_to_device_of_base_layer(name)


def tensor_version(tensor: Tensor) -> int:
    """Return a number that every change in place makes larger (torch 2.13)."""
    return tensor._version
