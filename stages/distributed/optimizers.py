"""AdamW in 32 and in 8 bits, on weights in float32 and in bfloat16.

    optimizer          bytes a weight, beside weight and gradient
    adamw              8      both moments in float32
    adamw_8bit         2      in 8 bits a block of 256 (Dettmers et al. 2022), by bitsandbytes
    paged_adamw_8bit   2      the same, on the host while a GPU needs the room; on a CPU as above

    masters            weights
    fp32               float32
    kahan              bfloat16, with what rounding took from each weight in 16 bits more
    stochastic         bfloat16, rounded up as often as the remainder says (Zamirai et al. 2020)

In plain bfloat16 most small steps round to nothing. Under `kahan` none is lost: a weight and its
remainder together are the float32 weight, bit by bit, and so is training. Stochastic rounding costs
no memory, and is right on average.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from stages.config import OptimizerName

Masters = Literal["fp32", "kahan", "stochastic"]
REMAINDER = "remainder"
SLICE = 1 << 24  # weights that are rounded at once, so that what that takes is small
_HALF = 1 << 15


class RoundedAdamW(Optimizer):
    """AdamW on bfloat16 weights: a tensor at a time is widened, updated and rounded again.

    The update itself is `kind`'s, a class of optimisers; the moments are its own. float32
    parameters are updated in place.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        kind: type[Optimizer],
        masters: Literal["kahan", "stochastic"],
        seed: int,
        **settings: Any,
    ) -> None:
        settings = {"lr": 0.0, **settings}
        super().__init__(params, settings)
        self.masters, self.seed = masters, seed
        # Parameters without content, which stand for one of ours during its update.
        self._wide = {p: nn.Parameter(torch.empty(0, device=p.device)) for p in self._parameters()}
        groups = [
            {**group, "params": [self._wide[p] for p in group["params"]]}
            for group in self.param_groups
        ]
        self.inner = kind(groups, **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        assert closure is None
        number = 0
        for ours, group in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update({name: value for name, value in ours.items() if name != "params"})
            for parameter in ours["params"]:
                if parameter.grad is not None:
                    self._update(parameter, number)
                number += 1

    def _update(self, parameter: nn.Parameter, number: int) -> None:
        state, wide = self.state[parameter], self._wide[parameter]
        remainder = state.pop(REMAINDER, None)
        is_narrow = parameter.dtype == torch.bfloat16
        wide.data = widened(parameter.data, remainder) if is_narrow else parameter.data
        assert parameter.grad is not None
        wide.grad = parameter.grad.to(wide.dtype)
        if state:
            self.inner.state[wide] = state
        self.inner.step()
        self.state[parameter] = state = self.inner.state.pop(wide)
        if is_narrow and self.masters == "kahan":
            state[REMAINDER] = torch.empty_like(parameter, dtype=torch.int16)
            round_into(parameter.data, state[REMAINDER], wide.data)
        elif is_narrow:
            generator = self._generator(number, int(state["step"]), parameter.device)
            round_at_random_into(parameter.data, wide.data, generator)
        wide.data, wide.grad = torch.empty(0, device=parameter.device), None

    def _generator(self, number: int, step: int, device: torch.device) -> torch.Generator:
        """Random numbers of one parameter's step, the same on all ranks and after a resume."""
        digest = hashlib.sha256(f"rounding/{self.seed}/{number}/{step}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big") >> 1
        return torch.Generator(device).manual_seed(seed)

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]


@dataclass(frozen=True, slots=True)
class AdamKind:
    """The chosen AdamW; `seed` is that of stochastic rounding."""

    name: OptimizerName = "adamw"
    masters: Masters = "fp32"
    seed: int = 0

    @property
    def is_plain(self) -> bool:
        """True for torch's AdamW on float32 weights."""
        return self.name == "adamw" and self.masters == "fp32"

    def build(self, parameters: Sequence[nn.Parameter], *, fused: bool, **settings: Any) -> Any:
        """Return the optimiser of these parameters; `fused` is for torch's own."""
        kind, further = self.class_and_settings(fused=fused)
        return kind(list(parameters), **settings, **further)

    def class_and_settings(self, *, fused: bool) -> tuple[type[Optimizer], dict[str, Any]]:
        """Return the class, and what it takes beside rate, betas, epsilon and weight decay.

        ValueError where bitsandbytes is not installed.
        """
        kind: type[Optimizer] = AdamW
        if self.name != "adamw":
            kind, fused = _of_bitsandbytes(self.name), False
        own = {"fused": True} if fused else {}
        if self.masters == "fp32":
            return kind, own
        return RoundedAdamW, {"kind": kind, "masters": self.masters, "seed": self.seed, **own}

    def require_plain(self, sharding: str) -> None:
        """Raise ValueError unless plain, where moments are sharded."""
        if not self.is_plain:
            raise ValueError(
                f"optimizer is {self.name} and precision.masters {self.masters}, but moments are "
                f"sharded ({sharding}); expected adamw and fp32, or ddp or a single process"
            )


PLAIN = AdamKind()


def _of_bitsandbytes(name: OptimizerName) -> type[Optimizer]:
    try:
        from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
    except ImportError:
        raise ValueError(
            f"optimizer is {name}, but bitsandbytes is not installed; expected adamw, or "
            "pip install 'instruct-rlhf[bitsandbytes]'"
        ) from None
    kind: type[Optimizer] = PagedAdamW8bit if name == "paged_adamw_8bit" else AdamW8bit
    return kind


def saved_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return one parameter's state with its tensors on the CPU, in their own dtypes."""
    return {key: x.detach().cpu() if isinstance(x, Tensor) else x for key, x in state.items()}


def restored_state(
    optimizer: Optimizer, parameter: nn.Parameter, saved: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a parameter's state from what `saved_state` returned, where the optimiser keeps it."""
    inner: Any = optimizer.inner if isinstance(optimizer, RoundedAdamW) else optimizer
    counts_on_device = inner.defaults.get("fused") or inner.defaults.get("capturable")
    state = {}
    for key, value in saved.items():
        is_count = key == "step" and not counts_on_device
        if isinstance(value, Tensor) and not is_count:
            value = value.to(parameter.device, copy=True)
        state[key] = value
    if type(inner).__module__.startswith("bitsandbytes"):
        for key in ("state1", "state2"):  # which may be paged
            buffer = inner.get_state_buffer(parameter, dtype=state[key].dtype)
            state[key] = buffer.copy_(state[key])
    return state


def state_bytes(numel: int, name: OptimizerName, masters: Masters) -> int:
    """Return the bytes that an optimiser keeps for so many weights, besides them."""
    moments = 8 * numel if name == "adamw" else 2 * numel + 2 * 4 * -(-numel // 256)
    return moments + (2 * numel if masters == "kahan" else 0)


def widened(weight: Tensor, remainder: Tensor | None) -> Tensor:
    """Return float32 weights from bfloat16 ones and what their rounding left."""
    if remainder is None:
        return weight.float()
    wide = torch.empty_like(weight, dtype=torch.float32)
    for part, high, low in _slices(wide, weight, remainder):
        bits = high.view(torch.int16).int().bitwise_left_shift_(16).add_(low)
        part.copy_(bits.view(torch.float32))
    return wide


def round_into(weight: Tensor, remainder: Tensor, wide: Tensor) -> None:
    """Round float32 to the nearest bfloat16, ties away from 0, and keep the remainder's bits."""
    for high, low, part in _slices(weight, remainder, wide):
        bits = part.view(torch.int32)
        upper = (bits + _HALF).bitwise_right_shift_(16)
        low.copy_(bits - upper.bitwise_left_shift(16))
        high.copy_(upper.short().view(torch.bfloat16))


def round_at_random_into(weight: Tensor, wide: Tensor, generator: torch.Generator) -> None:
    """Round float32 to one of the two nearest bfloat16: up with the probability of the rest."""
    for high, part in _slices(weight, wide):
        bits = part.view(torch.int32)
        drawn = torch.randint(
            0, 1 << 16, bits.shape, generator=generator, device=bits.device, dtype=torch.int32
        )
        upper = drawn.add_(bits).bitwise_right_shift_(16)
        high.copy_(upper.short().view(torch.bfloat16))


def _slices(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(torch.split(x.view(-1), SLICE) for x in tensors), strict=True)
