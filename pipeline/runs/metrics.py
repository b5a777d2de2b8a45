"""A stage's `metrics.jsonl`: one line a step, {"step", "total", "area/quantity": number | null}.

A resumed stage repeats the steps since its last checkpoint; their lines
are replaced, so the file of a resumed stage equals that of an unbroken one. No times are in it:
two runs with one seed write the same file.
"""

import json
import math
from pathlib import Path
from typing import Any

from reward_models.atomic_files import write_jsonl
from stages.progress import Step


class MetricsFile:
    """Appends steps. More about the current step joins its line; an earlier step drops the rest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = _whole_lines(path)
        self.current: int | None = None  # the step this process wrote last
        if path.is_file():
            write_jsonl(path, self.rows)

    def add(self, step: Step) -> None:
        """Write a step's numbers through to the file; a step without numbers leaves no line."""
        numbers = {  # JSON has neither NaN nor infinity
            name: float(value) if math.isfinite(value) else None
            for name, value in step.metrics.items()
        }
        if not numbers:
            return
        row = {"step": step.done, "total": step.total, **numbers}
        if step.done == 0:  # a resumed stage repeats a part of it, and the rest stays
            first = self.rows[0] if self.rows and self.rows[0]["step"] == 0 else {}
            self.rows = [{**first, **row}, *(later for later in self.rows if later["step"] > 0)]
            write_jsonl(self.path, self.rows)
        elif self.rows and step.done <= self.rows[-1]["step"]:
            same = self.rows[-1] if step.done == self.current else {}
            earlier = [other for other in self.rows if other["step"] < step.done]
            self.rows = [*earlier, {**same, **row}]
            write_jsonl(self.path, self.rows)
        else:
            self.rows.append(row)
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
        self.current = step.done


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of the file up to a line that a kill left half written."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows
