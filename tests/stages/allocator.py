"""The peak of torch's allocator, for tests of estimates."""

import json
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def allocated_peak(work: Callable[[], None], folder: Path) -> int:
    """The most bytes that the work held at once as it was done, of what it took itself."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    watched.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    now = peak = 0
    for event in events:
        if event.get("name") == "[memory]":
            now += event["args"]["Bytes"]
            peak = max(peak, now)
    return peak
