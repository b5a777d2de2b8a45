"""The base classes of adapter families that PEFT does not have, and names of a model's modules.

PEFT stores, saves, loads and freezes adapters. A family here says which modules it wraps, which
parameters its adapter has there and how they enter the forward pass.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reward_models.compat import move_to_base_device, peft_type


@dataclass
class AdapterConfig(PeftConfig):
    """The content of adapter_config.json; `target_modules` are endings of modules' names."""

    registered: ClassVar[PeftType]  # see `register`
    target_modules: set[str] | None = field(default=None)
    exclude_modules: set[str] | None = field(default=None)
    layers_to_transform: list[int] | None = field(default=None)
    layers_pattern: str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = self.registered
        if isinstance(self.target_modules, list):  # as JSON has it
            self.target_modules = set(self.target_modules)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A module of the base model with the parameters that each adapter, by its name, has there.

    Families name their containers in `adapter_layer_names`.
    """

    adapter_layer_names: tuple[str, ...] = ()

    def __init__(self, base: nn.Module, name: str, config: AdapterConfig) -> None:
        super().__init__()
        self.base_layer = base
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self.create_containers()
        self.update_layer(name, config)

    def create_containers(self) -> None:
        """Create the containers named in `adapter_layer_names`."""
        raise NotImplementedError

    def create_adapter(self, name: str, config: Any) -> None:
        """Create the parameters of a new adapter in the containers."""
        raise NotImplementedError

    def set_dropout(self, rate: float) -> None:
        """Change the dropout of all adapters, in families that have any."""

    def update_layer(self, name: str, config: AdapterConfig) -> None:
        """Add an adapter to this module; PEFT calls it."""
        self.create_adapter(name, config)
        move_to_base_device(self, name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def active_name(self, container: nn.ModuleDict | nn.ParameterDict) -> str | None:
        """Return the name of the active adapter that has parameters here, if any."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in container), None)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002
        """Merge adapters into the base layer, in families that are linear in the weights."""
        raise ValueError("this family is not linear in the weights: it cannot be merged")

    def unmerge(self) -> None:
        """Undo `merge`."""


class AdapterModel(BaseTuner):
    """The wrapper of all target modules; families name their layer class and prefix."""

    layer: type[AdapterLayer]
    tuner_layer_cls = AdapterLayer
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
        assert isinstance(peft_config, AdapterConfig)
        if isinstance(target, self.layer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.layer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        setattr(parent, target_name, layer)


def register(name: str, config: type[AdapterConfig], model: type[AdapterModel]) -> None:
    """Make a family known to PEFT under a name in lower case.

    Raises ValueError where there is another family of that name, which PEFT would use instead.
    """
    kind = peft_type(name.upper())
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    if known is not None and known is not config:
        raise ValueError(f"register: '{name}' is {known.__name__} already; expected a new name")
    config.registered = kind
    if known is None:
        register_peft_method(name=name, config_cls=config, model_cls=model, prefix=model.prefix)


def output_size(module: nn.Module) -> int:
    """Return the number of output features of a linear or norm layer."""
    match module:
        case BaseTunerLayer():
            return output_size(module.get_base_layer())
        case Conv1D():
            return int(module.nf)
        case nn.Linear():
            return module.out_features
        case _:
            return int(module.get_parameter("weight").shape[0])


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a module itself, without those of its parts."""
    return dict(module.named_parameters(recurse=False))


def add_bias(linear: nn.Module, bias: Tensor) -> None:
    """Add to a layer's bias, giving it one where it has none."""
    weight = linear.get_parameter("weight")
    old = own_parameters(linear).get("bias")
    new = bias.detach().to(weight.dtype)
    total = new.clone() if old is None else old.detach() + new
    linear.register_parameter("bias", nn.Parameter(total, requires_grad=False))


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Endings of module names inside a layer; "" where an architecture has no such module."""

    attention: str
    attention_output: str
    mlp: str
    mlp_output: str


_LAYER_NAMES = (
    LayerNames("self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj"),  # Llama, Qwen, Gemma
    LayerNames("attn", "attn.c_proj", "mlp", "mlp.c_proj"),  # GPT-2
    LayerNames("attention", "attention.dense", "mlp", "mlp.dense_4h_to_h"),  # GPT-NeoX
    LayerNames("self_attn", "self_attn.out_proj", "", "fc2"),  # OPT
)


def layer_names(model: PreTrainedModel) -> LayerNames:
    """Return the names that fit this model; ValueError where none do."""
    names = [name for name, _ in model.named_modules()]
    for parts in _LAYER_NAMES:
        expected = [parts.attention_output, parts.mlp_output]
        if all(any(name.endswith(f".{part}") for name in names) for part in expected):
            return parts
    raise ValueError(
        f"{type(model).__name__}: its attention and MLP have names this family does not know; "
        "family lora works with any linear layer"
    )


def module_name(model: PreTrainedModel, module: nn.Module | None, description: str) -> str:
    """Return the name of a module in the model; ValueError where it has none such."""
    for name, other in model.named_modules():
        if other is module:
            return str(name)
    raise ValueError(f"{type(model).__name__} has no {description}")
