"""How much memory work with tensors takes at its peak, found without doing it.

The work runs on torch's fake tensors, which have shapes and no numbers: nothing is allocated, so
nothing can run out of memory, and hardly any time is spent. Every tensor that the work makes counts
for as long as it lives. torch's own `MemTracker` cannot be used: it refuses frozen parameters.
"""

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_log = logging.getLogger("torch._subclasses.fake_tensor")


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes at the peak of work on so many rows: `fixed`, and `each` for every row."""

    fixed: int
    each: int

    def bytes(self, rows: int) -> int:
        """What so many rows take."""
        return self.fixed + rows * self.each

    def rows(self, room: int) -> int:
        """How many rows fit into `room` bytes."""
        return max(0, room - self.fixed) // self.each


def cost_of(work_on: Callable[[int], Callable[[], None]], rows: int = 1) -> Cost:
    """What it costs to do what `work_on` a number of rows, a multiple of `rows`, returns."""
    few, many = 4 * rows, 8 * rows  # of one row, the peak may lie elsewhere
    low, high = peak_bytes(work_on(few)), peak_bytes(work_on(many))
    each = max(1, (high - low) // (many - few))
    return Cost(max(0, low - few * each), each)


def peak_bytes(work: Callable[[], None]) -> int:
    """The most that the tensors which `work` makes hold at once.

    Raises what `work` does where it asks for numbers, which fake tensors do not have.
    """
    live = _Live()
    _log.disabled = True  # it prints the traceback of what is raised, and handled, here
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), live:
            work()
    finally:
        _log.disabled = False
    return live.peak


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, until they are given back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: set[int] = set()  # of what was there before, and of what was made since

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        self._known.update(x._cdata for x in _storages((args, given)))
        made = func(*args, **given)
        for storage in _storages(made):
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._given_back, storage._cdata, storage.nbytes())
        return made

    def _given_back(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _storages(tree: object) -> list[UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor)]
