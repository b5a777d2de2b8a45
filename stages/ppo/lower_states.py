"""Layers below the lowest one that moves are computed once a rollout; what they say is kept.

    first reading   ids -> lower layers -> state_LD -> upper layers        the state is kept
    afterwards                             state_LD -> upper layers

Models that hold the same lower layers read the same states: the policy and the reference, often
the critic and the reward model too, and all of them in every inner epoch. An episode is known by
its tokens and their positions, so it does not matter beside which others it is read again; one not
known is computed. That costs 4 bytes * hidden size a token of a rollout, for each transformer that
models do not share.

Dimension key:  B rows,  L tokens of a row,  D hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_models.backbone import hidden_size, transformer
from reward_models.model import RewardModel
from stages.adapters.backbone import family_of
from stages.ppo.reading import Layout

_PLAIN = ("lora", "probe")  # sets that leave alone what enters the layers that they are not in

Key = tuple[int, tuple[int, ...], tuple[int, ...]]  # transformer, tokens, positions


@dataclass(frozen=True, slots=True)
class _Lower:
    """The lower layers of one model, which transformer they are, and its hidden size."""

    layers: tuple[nn.Module, ...]
    number: int
    width: int


class LowerStates:
    """What leaves the lower layers of `roles`, which must be whole on this rank; none: of nobody.

    A model takes no part where something below may move, or where its set changes what goes in.
    """

    def __init__(self, roles: Sequence[nn.Module] = ()) -> None:
        found = [(role, stack) for role in roles if (stack := _Stack.of(role)) is not None]
        depths = [stack.resting for _, stack in found if stack.resting > 0 and stack.moves]
        depth = min(depths, default=0)
        self._lower: dict[nn.Module, _Lower] = {}
        self._state_LD: dict[Key, Tensor] = {}
        numbers: dict[tuple[int, ...], int] = {}
        for role, stack in found:
            if 0 < depth <= stack.resting:
                number = numbers.setdefault(stack.memory_below(depth), len(numbers))
                width = hidden_size(stack.trunk)
                self._lower[role] = _Lower(tuple(stack.layers[:depth]), number, width)

    @property
    def roles(self) -> int:
        """How many models take part."""
        return len(self._lower)

    @property
    def bytes_a_token(self) -> int:
        """What is kept of each token of a rollout."""
        return 4 * sum({lower.number: lower.width for lower in self._lower.values()}.values())

    @property
    def held_bytes(self) -> int:
        """Of all states that are kept."""
        return sum(x.numel() * x.element_size() for x in self._state_LD.values())

    def forget(self) -> None:
        """Let the states of a rollout go."""
        self._state_LD.clear()

    @contextmanager
    def reading(self, role: nn.Module, layout: Layout) -> Iterator[None]:
        """For one pass of `role`: leave out its lower layers, or remember what they say."""
        lower = self._lower.get(role)
        if lower is None:
            yield
            return
        keys = _keys(lower.number, layout)
        if all(key in self._state_LD for key in keys):
            states = [self._state_LD[key] for key in keys]
            with _standing_in(lower.layers, layout.joined(states)):
                yield
            return
        said: list[object] = []
        handle = lower.layers[-1].register_forward_hook(lambda _, __, out: said.append(out))
        try:
            yield
        finally:
            handle.remove()
        if isinstance(said[0], Tensor):  # else a layer that says more, which nothing may leave out
            for key, state_LD in zip(keys, layout.split(said[0].detach()), strict=True):
                self._state_LD[key] = state_LD.clone()


@dataclass(frozen=True, slots=True)
class _Stack:
    """The layers of a model; the first `resting` of them do not move, nor does what goes in."""

    trunk: PreTrainedModel
    layers: list[nn.Module]
    resting: int
    moves: bool

    @classmethod
    def of(cls, role: nn.Module) -> "_Stack | None":
        """None for a model whose stack cannot be told, or whose set is felt below it."""
        carrier = role.backbone if isinstance(role, RewardModel) else role
        if isinstance(carrier, PeftModel):
            if family_of(carrier) not in _PLAIN:
                return None
        elif not isinstance(carrier, PreTrainedModel):
            return None
        trunk = transformer(carrier)
        count = trunk.config.get_text_config().num_hidden_layers
        lists = [m for m in trunk.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        if len(lists) != 1:
            return None
        inside = {id(p) for p in lists[0].parameters()}
        outside_moves = any(p.requires_grad and id(p) not in inside for p in trunk.parameters())
        resting = 0 if outside_moves else sum(1 for _ in takewhile(_rests, lists[0]))
        return cls(trunk, list(lists[0]), resting, not _rests(role))

    def memory_below(self, depth: int) -> tuple[int, ...]:
        """Where everything lies that the first `depth` layers' states are made of."""
        above = {id(p) for layer in self.layers[depth:] for p in layer.parameters()}
        return tuple(p.data_ptr() for p in self.trunk.parameters() if id(p) not in above)


def _rests(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


def _keys(number: int, layout: Layout) -> list[Key]:
    parts = zip(layout.split(layout.ids_BL), layout.split(layout.positions_BL), strict=True)
    return [(number, tuple(ids.tolist()), tuple(places.tolist())) for ids, places in parts]


@contextmanager
def _standing_in(layers: Sequence[nn.Module], state_BLD: Tensor) -> Iterator[None]:
    """Let the layers say this without computing anything."""

    def said(*_: object, **__: object) -> Tensor:
        return state_BLD

    for layer in layers:
        vars(layer)["forward"] = said
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]
