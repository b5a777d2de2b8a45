"""Means of metrics over everything that was counted, on every rank."""

from collections.abc import Callable

import torch
from torch import Tensor


class Tally:
    """Adds up totals and counts by name; a mean divides by the global count."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor | float, count: float = 1.0) -> None:
        """Add `total`, a sum over `count` things."""
        pair = torch.tensor([0.0, count], dtype=torch.float64)
        pair[0] = float(total)
        self._sums[name] = self._sums.get(name, torch.zeros(2, dtype=torch.float64)) + pair

    def add_all(self, name: str, x: Tensor) -> None:
        """Add every element of `x`."""
        self.add(name, x.double().sum(), x.numel())

    def means(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means, after `total` has added totals and counts up over ranks."""
        names = sorted(self._sums)
        table = total(torch.stack([self._sums[name] for name in names]))
        return {name: float(s / n) for name, (s, n) in zip(names, table, strict=True)}
