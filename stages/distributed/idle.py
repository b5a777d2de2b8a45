"""Frozen models that wait in host memory while they are idle, and are on the device for their turn.

Their weights never change, so nothing is copied back: the host's copy stays, pinned, and the
device's is dropped. Without a device of its own, on a CPU, there is nothing to move.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Idle:
    """The weights of frozen models on the host; `moves` counts how often they came over.

    What a model shares with one of `busy`, which is in use all the time, stays where it is.
    """

    def __init__(
        self,
        models: Sequence[nn.Module] = (),
        busy: Sequence[nn.Module] = (),
        device: torch.device | None = None,
    ) -> None:
        self.device = device
        self.moves = 0
        used = {id(x) for model in busy for x in _tensors(model)}
        own = {id(x): x for model in models for x in _tensors(model) if id(x) not in used}
        self._host: list[tuple[Tensor, Tensor]] = []
        if device is None or not own:
            return
        if device.type == "cpu":
            log.info("models.offload has no effect on a CPU: weights are in host memory already")
            return
        for tensor in own.values():
            on_host = tensor.data.cpu()
            pinned = on_host.pin_memory() if device.type == "cuda" else on_host
            self._host.append((tensor, pinned))
            tensor.data = pinned

    @property
    def num_bytes(self) -> int:
        """Memory of the device that is free while the models are idle."""
        return sum(on_host.nbytes for _, on_host in self._host)

    def on_its_device(self, on_host: Tensor) -> Tensor:
        """Copy a tensor to the device."""
        return on_host.to(self.device, non_blocking=True)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Have the models on the device for a while."""
        if not self._host:
            yield
            return
        self.moves += 1
        for tensor, on_host in self._host:
            tensor.data = self.on_its_device(on_host)
        try:
            yield
        finally:
            for tensor, on_host in self._host:
                tensor.data = on_host


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
