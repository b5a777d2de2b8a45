"""Agreement with gold over time, of one person: windows of gold tasks, and a fall since earlier."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from labeling_ui.reports.agreement import share

WINDOW = 10  # gold tasks
RESAMPLES = 1000

Counts = tuple[int, int]  # of one gold task: pairs ordered as gold does, and pairs that both order


@dataclass(frozen=True, slots=True)
class Drift:
    """The share of pairs right in the latest window less that before, with a 95 % interval."""

    latest: float
    before: float
    low: float
    high: float

    @property
    def is_fall(self) -> bool:
        """True where the person agrees with gold less than before, beyond chance."""
        return self.high < 0.0


def windows(counts: Sequence[tuple[str, Counts]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return the share of pairs right in each window of gold tasks, given with their days in order.

    The last window may be shorter.
    """
    parts = [counts[start : start + WINDOW] for start in range(0, len(counts), WINDOW)]
    return [
        {"from": part[0][0], "to": part[-1][0], "gold": asdict(share([c for _, c in part], rng))}
        for part in parts
    ]


def drift(counts: Sequence[Counts], rng: np.random.Generator) -> Drift | None:
    """Compare the latest window with all before; None before there are two whole windows.

    The interval is a bootstrap over gold tasks, of both parts (pairs of one task go together).
    """
    used = np.array([one for one in counts if one[1]], np.int64).reshape(-1, 2)
    if len(used) < 2 * WINDOW:
        return None
    latest, before = used[-WINDOW:], used[:-WINDOW]
    difference_R = _resampled(latest, rng) - _resampled(before, rng)
    low, high = np.quantile(difference_R, (0.025, 0.975))
    shares = [float(part[:, 0].sum() / part[:, 1].sum()) for part in (latest, before)]
    return Drift(shares[0], shares[1], float(low), float(high))


def _resampled(part: np.ndarray[Any, np.dtype[np.int64]], rng: np.random.Generator) -> Any:
    sums = part[rng.integers(0, len(part), (RESAMPLES, len(part)))].sum(1)
    return sums[:, 0] / sums[:, 1]
