"""An exponential moving average of trained weights (appendix C.4: decay 0.992).

The paper does not say per what; here it is per optimiser step, as in other implementations.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """float32 copies of the parameters, moved by a share 1 - decay at each step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.average = {name: p.detach().float().clone() for name, p in parameters.items()}

    def step(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Move towards the parameters as they are now."""
        with torch.no_grad():
            for name, mean in self.average.items():
                mean.lerp_(parameters[name].detach().float(), 1.0 - self.decay)


@contextmanager
def weights_in_place(
    parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]
) -> Iterator[None]:
    """Let the parameters hold `weights` for a while."""
    own = {name: p.detach().clone() for name, p in parameters.items()}
    copy_weights(parameters, weights)
    try:
        yield
    finally:
        copy_weights(parameters, own)


def copy_weights(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Set every parameter to the weight of its name."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
