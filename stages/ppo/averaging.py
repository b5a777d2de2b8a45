"""An exponential moving average of trained weights (appendix C.4: decay 0.992).

The paper does not say per what; here it is per optimiser step, as in other implementations.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """float32 copies of weights, moved by a share 1 - decay at each step."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.average = {name: x.float().clone() for name, x in weights.items()}

    def step(self, weights: Mapping[str, Tensor]) -> None:
        """Move towards the weights as they are now."""
        with torch.no_grad():
            for name, mean in self.average.items():
                mean.lerp_(weights[name].float(), 1.0 - self.decay)


@contextmanager
def weights_in_place(held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the tensors of a model hold `weights` for a while."""
    own = {name: x.clone() for name, x in held.items()}
    copy_weights(held, weights)
    try:
        yield
    finally:
        copy_weights(held, own)


def copy_weights(held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Set every tensor to the weight of its name."""
    with torch.no_grad():
        for name, x in held.items():
            x.copy_(weights[name])
