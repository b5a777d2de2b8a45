"""What our kinds of sets share as plug-ins of PEFT.

PEFT holds, saves, loads and freezes; a family here says which modules it wraps, what a set holds
there and what it adds. Once this package is imported, `PeftModel.from_pretrained` knows them all.
"""

from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass
class SetConfig(PeftConfig):
    """What is written to adapter_config.json; `target_modules` are endings of modules' names."""

    target_modules: set[str] | None = field(default=None)
    exclude_modules: set[str] | None = field(default=None)
    layers_to_transform: list[int] | None = field(default=None)
    layers_pattern: str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if isinstance(self.target_modules, list):  # as JSON has it
            self.target_modules = set(self.target_modules)


class SetLayer(nn.Module, BaseTunerLayer):
    """A module of the base, and beside it what the sets of several names hold there."""

    adapter_layer_names: tuple[str, ...] = ()

    def __init__(self, base: nn.Module, name: str, config: SetConfig) -> None:
        super().__init__()
        self.base_layer = base
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.begin()
        self.update_layer(name, config)

    def begin(self) -> None:
        """Make the containers named in `adapter_layer_names`."""
        raise NotImplementedError

    def add(self, name: str, config: Any) -> None:
        """Put a new set of that name into the containers."""
        raise NotImplementedError

    def update_layer(self, name: str, config: SetConfig) -> None:
        """A further set on this module; what PEFT calls."""
        self.add(name, config)
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def active_name(self, container: nn.ModuleDict | nn.ParameterDict) -> str | None:
        """The set that acts here now, if any."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in container), None)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002
        """What families that are linear replace."""
        raise ValueError("this family is not linear in the weights: it cannot be merged")

    def unmerge(self) -> None:
        """Nothing was merged."""


class SetModel(BaseTuner):
    """Wraps the target modules; families name their layer class and prefix."""

    layer: type[SetLayer]
    tuner_layer_cls = SetLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT reads the class

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,  # noqa: ARG002 - PEFT's signature
        parameter_name: str | None = None,  # noqa: ARG002
    ) -> None:
        assert isinstance(peft_config, SetConfig)
        if isinstance(target, self.layer):
            target.update_layer(adapter_name, peft_config)
            return
        new = self.layer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        setattr(parent, target_name, new)


def output_size(module: nn.Module) -> int:
    """How many numbers a linear or norm layer gives for a token."""
    match module:
        case BaseTunerLayer():
            return output_size(module.get_base_layer())
        case Conv1D():
            return int(module.nf)
        case nn.Linear():
            return module.out_features
        case _:
            weight = module.get_parameter("weight")
            return int(weight.shape[0])


def register(name: str, config: type[SetConfig], model: type[SetModel]) -> None:
    """Make a family known to PEFT under a name in lower case, once."""
    kind = _peft_type(name.upper())
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config, model_cls=model, prefix=model.prefix)


def _peft_type(name: str) -> PeftType:
    """The member of that name; PEFT's enumeration is closed, so a new one is put in by hand."""
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


def peft_type(name: str) -> PeftType:
    """PEFT's name for a family that was registered."""
    return _peft_type(name)


def add_bias(linear: nn.Module, bias: Tensor) -> None:
    """Add to a layer's bias, giving it one where it has none."""
    weight = linear.get_parameter("weight")
    old = linear._parameters.get("bias")
    new = bias.detach().to(weight.dtype)
    total = new.clone() if old is None else old.detach() + new
    linear.register_parameter("bias", nn.Parameter(total, requires_grad=False))


@dataclass(frozen=True, slots=True)
class Parts:
    """Endings of module names inside a layer; "" where an architecture has no such module."""

    attention: str
    attention_output: str
    mlp: str
    mlp_output: str


_PARTS = (
    Parts("self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj"),  # Llama, Qwen, Gemma, Mistral
    Parts("attn", "attn.c_proj", "mlp", "mlp.c_proj"),  # GPT-2
    Parts("attention", "attention.dense", "mlp", "mlp.dense_4h_to_h"),  # GPT-NeoX
    Parts("self_attn", "self_attn.out_proj", "", "fc2"),  # OPT
)


def parts_of(model: PreTrainedModel) -> Parts:
    """The names that fit this model; ValueError where none do."""
    names = [name for name, _ in model.named_modules()]
    for parts in _PARTS:
        wanted = [parts.attention_output, parts.mlp_output]
        if all(any(name.endswith(f".{part}") for name in names) for part in wanted):
            return parts
    raise ValueError(
        f"{type(model).__name__}: its attention and MLP have names this family does not know; "
        "family lora works with any linear layer"
    )


def biased_places(model: PreTrainedModel) -> set[str]:
    """Endings of all layers that have a bias; of all linear layers where there is none."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    inside = [(name, module) for name, module in model.named_modules() if module is not head]
    biased = {name for name, module in inside if module._parameters.get("bias") is not None}
    if not biased:
        biased = {name for name, module in inside if isinstance(module, nn.Linear | Conv1D)}
    return {_ending(name) for name in biased}


def head_place(model: PreTrainedModel) -> str:
    """The name of the unembedding."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if module is head:
            return str(name)
    raise ValueError(f"{type(model).__name__} has no unembedding to train")


def last_norm_place(model: PreTrainedModel) -> str:
    """The name of the norm whose output the unembedding reads."""
    trunk = model.base_model
    norms = [
        module
        for module in trunk.children()
        if (weight := module._parameters.get("weight")) is not None and weight.dim() == 1
    ]
    for name, module in model.named_modules():
        if norms and module is norms[-1]:
            return str(name)
    raise ValueError(f"{type(model).__name__} has no norm before its unembedding")


def table_place(model: PreTrainedModel) -> str:
    """The name of the input embedding."""
    table = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is table)


def _ending(name: str) -> str:
    """Without the layers' common beginning: what follows the last number."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else name
