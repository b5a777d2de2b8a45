"""The states below the lowest trained layer, computed once a rollout and cached.

    first forward   ids -> lower layers -> state_LD -> upper layers        the state is cached
    afterwards                             state_LD -> upper layers

Models that hold the same lower layers have the same states: the policy and the reference, often
the critic and the reward model too, and all of them in every inner epoch. An episode is identified
by its tokens and their positions, whatever the batch; an unknown one is computed. That costs
4 bytes * hidden size a token of a rollout, for each transformer that models do not share.

Dimension key:  B rows,  L tokens of a row,  D hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_models.backbone import hidden_size, transformer
from reward_models.model import RewardModel
from stages.adapters.backbone import family_of

_ABOVE_ONLY = ("lora", "probe")  # families that leave alone the input of layers they are not in

Key = tuple[int, tuple[int, ...], tuple[int, ...]]  # transformer, tokens, positions


class Rows(Protocol):
    """Model inputs that can be split into texts, and states joined from them."""

    @property
    def ids_BL(self) -> Tensor:  # noqa: N802 - named for its shape
        """Token ids."""

    @property
    def positions_BL(self) -> Tensor:  # noqa: N802
        """Positions of the tokens."""

    def split(self, x_BL: Tensor) -> list[Tensor]:
        """A tensor with a row and column for each token, text by text."""

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`, 0 at padding."""


@dataclass(frozen=True, slots=True)
class _Lower:
    """The lower layers of one model, the number of its transformer, and its hidden size."""

    layers: tuple[nn.Module, ...]
    number: int
    width: int


class CachedLayers:
    """The outputs of the lower layers of `models`, which must be whole on this rank.

    A model takes no part where something below may move, or where its adapter changes the input.
    """

    def __init__(self, models: Sequence[nn.Module] = ()) -> None:
        stacks = [(model, stack) for model in models if (stack := _Stack.of(model)) is not None]
        depths = [stack.frozen for _, stack in stacks if stack.frozen > 0 and stack.trained]
        depth = min(depths, default=0)
        self._lower: dict[nn.Module, _Lower] = {}
        self._state_LD: dict[Key, Tensor] = {}
        numbers: dict[tuple[int, ...], int] = {}
        for model, stack in stacks:
            if 0 < depth <= stack.frozen:
                number = numbers.setdefault(stack.memory_below(depth), len(numbers))
                width = hidden_size(stack.backbone)
                self._lower[model] = _Lower(tuple(stack.layers[:depth]), number, width)

    @property
    def num_models(self) -> int:
        """The number of models that take part."""
        return len(self._lower)

    @property
    def bytes_per_token(self) -> int:
        """Memory that each token of a rollout takes."""
        return 4 * sum({lower.number: lower.width for lower in self._lower.values()}.values())

    @property
    def num_bytes(self) -> int:
        """Memory that the cache takes now."""
        return sum(x.numel() * x.element_size() for x in self._state_LD.values())

    def forget(self) -> None:
        """Free the states of a rollout."""
        self._state_LD.clear()

    @contextmanager
    def cached(self, model: nn.Module, rows: Rows) -> Iterator[None]:
        """For one forward pass of `model`: skip its lower layers, or cache their output."""
        lower = self._lower.get(model)
        if lower is None:
            yield
            return
        texts = zip(rows.split(rows.ids_BL), rows.split(rows.positions_BL), strict=True)
        keys = [(lower.number, tuple(ids.tolist()), tuple(at.tolist())) for ids, at in texts]
        if all(key in self._state_LD for key in keys):
            with _skipped(lower.layers, rows.joined([self._state_LD[key] for key in keys])):
                yield
            return
        outputs: list[object] = []
        handle = lower.layers[-1].register_forward_hook(lambda _, __, out: outputs.append(out))
        try:
            yield
        finally:
            handle.remove()
        if isinstance(outputs[0], Tensor):  # a layer with further outputs cannot be skipped
            for key, state_LD in zip(keys, rows.split(outputs[0].detach()), strict=True):
                self._state_LD[key] = state_LD.clone()


@dataclass(frozen=True, slots=True)
class _Stack:
    """The layers of a model; the first `frozen` of them, and their input, do not move."""

    backbone: PreTrainedModel
    layers: list[nn.Module]
    frozen: int
    trained: bool

    @classmethod
    def of(cls, model: nn.Module) -> "_Stack | None":
        """None for a model without one clear stack, or whose adapter acts below it."""
        adapted = model.backbone if isinstance(model, RewardModel) else model
        if isinstance(adapted, PeftModel):
            if family_of(adapted) not in _ABOVE_ONLY:
                return None
        elif not isinstance(adapted, PreTrainedModel):
            return None
        backbone = transformer(adapted)
        count = backbone.config.get_text_config().num_hidden_layers
        lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        if len(lists) != 1:
            return None
        inside = {id(p) for p in lists[0].parameters()}
        outside = [p for p in backbone.parameters() if id(p) not in inside]
        embeds_move = any(p.requires_grad for p in outside)
        frozen = 0 if embeds_move else sum(1 for _ in takewhile(_is_frozen, lists[0]))
        return cls(backbone, list(lists[0]), frozen, not _is_frozen(model))

    def memory_below(self, depth: int) -> tuple[int, ...]:
        """The addresses of all weights that the first `depth` layers' states depend on."""
        above = {id(p) for layer in self.layers[depth:] for p in layer.parameters()}
        return tuple(p.data_ptr() for p in self.backbone.parameters() if id(p) not in above)


def _is_frozen(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


@contextmanager
def _skipped(layers: Sequence[nn.Module], state_BLD: Tensor) -> Iterator[None]:
    """Let the layers return this without computing anything."""

    def forward(*_: object, **__: object) -> Tensor:
        return state_BLD

    own = [vars(layer).get("forward") for layer in layers]  # set where activations are checkpointed
    for layer in layers:
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer, checkpointed in zip(layers, own, strict=True):
            del vars(layer)["forward"]
            if checkpointed is not None:
                vars(layer)["forward"] = checkpointed
