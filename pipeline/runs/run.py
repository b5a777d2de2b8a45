"""A run's folder: which stages are finished, which resume, which restart; one process at a time.

runs/NAME/config.yaml             the config with all defaults filled in
runs/NAME/STAGE/                  one artefact a stage
runs/NAME/STAGE/started.json      written first: the fingerprint that the stage is working on
runs/NAME/STAGE/metrics.jsonl     its numbers, step by step
runs/NAME/STAGE/manifest.json     written last: without it the stage did not finish
runs/NAME/.previous/STAGE         the artefact that a changed config or input replaced
"""

import contextlib
import fcntl
import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.runs import manifest as manifests
from pipeline.runs.manifest import SCHEMA, Hashes, Input, Manifest, require_schema
from pipeline.runs.stage import Ranks, Source, Stage
from reward_models.atomic_files import write_json, write_jsonl
from reward_models.records import finite_or_none
from stages.config import HUB
from stages.data.hub_data import HubData
from stages.progress import Report, Step

State = Literal["finished", "interrupted", "changed", "new"]


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a stage, the reason, and the fingerprint and inputs that it has to have."""

    state: State
    reason: str
    fingerprint: str
    inputs: Mapping[str, Input]


class Run:
    """One run's folder, held by this process. Made by `open_run`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hashes = Hashes(folder / ".hashes.json")

    def status(self, stage: Stage) -> Status:
        """Compare a stage with its folder; ValueError where an input is missing.

        A missing input from outside counts as unchanged where the stage is finished: a run that
        was moved need not bring along the files that its data sets were made from.
        """
        folder = self.folder / stage.name
        manifest = Manifest.read(folder / "manifest.json")
        before = {} if manifest is None else manifest.inputs
        inputs = {
            name: self._input(source, before.get(name)) for name, source in stage.inputs().items()
        }
        settings = stage.settings()
        fingerprint = manifests.fingerprint(stage.name, settings, inputs)
        if manifest is not None:
            same = manifest.fingerprint == fingerprint
            reason = "" if same else _difference(manifest, settings, inputs)
            if same and dict(manifest.outputs) != self._outputs(folder):
                reason = "its files are not those it wrote"
            return Status("changed" if reason else "finished", reason, fingerprint, inputs)
        started = _started(folder)
        if not started:
            return Status("new", "", fingerprint, inputs)
        if started["fingerprint"] == fingerprint:
            return Status("interrupted", "", fingerprint, inputs)
        reason = "it was interrupted under other settings or inputs"
        return Status("changed", reason, fingerprint, inputs)

    def execute(
        self, stage: Stage, status: Status, report: Report, ranks: Ranks | None = None
    ) -> Manifest:
        """Run or resume a stage, on `ranks` if given; write the manifest when all is there."""
        folder = self.folder / stage.name
        if status.state in ("changed", "new"):
            self._set_aside(folder)
        attempts = int(_started(folder).get("attempts", 0)) + 1
        folder.mkdir(parents=True, exist_ok=True)
        begin = datetime.now(UTC).isoformat(timespec="seconds")
        started = {"fingerprint": status.fingerprint, "started": begin, "attempts": attempts}
        write_json(folder / "started.json", {**started, "schema": SCHEMA})
        metrics, meter = MetricsFile(folder / "metrics.jsonl"), Meter()

        def listen(step: Step) -> None:
            metrics.add(step)
            report(step)

        if ranks is None:
            stage.run(folder, listen)
        else:
            ranks.train(self.folder, stage.name, listen)
        used = meter.read()
        settings = {**stage.settings(), **stage.final_settings(folder)}
        manifest = Manifest(
            stage=stage.name,
            fingerprint=manifests.fingerprint(stage.name, settings, status.inputs),
            settings=settings,
            seed=int(settings["seed"]),
            inputs=status.inputs,
            outputs=self._outputs(folder),
            labels=sorted(self._inherited_labels(stage) | stage.labels(folder)),
            code_version=manifests.code_version(),
            libraries=manifests.libraries(),
            started=begin,
            **used,
            attempts=attempts,
            launched={} if ranks is None else ranks.manifest(),
        )
        manifest.write(folder / "manifest.json")
        self.hashes.save()
        return manifest

    def _input(self, source: Source, before: Input | None) -> Input:
        inside = isinstance(source, Path) and source.is_relative_to(self.folder)
        path = source.relative_to(self.folder) if inside and isinstance(source, Path) else source
        same = before is not None and not inside and before.path == str(source)
        if before is not None and same and is_gone(source, before.sha256):
            return before
        return Input(str(path), self.hashes.of(source))

    def _outputs(self, folder: Path) -> dict[str, str]:
        files = self.hashes.files(folder)
        return {
            name: files[name] for name in files if name not in ("started.json", "manifest.json")
        }

    def _inherited_labels(self, stage: Stage) -> set[str]:
        """Return the kinds of annotators behind the inputs that other stages of this run made."""
        kinds: set[str] = set()
        for source in stage.inputs().values():
            if isinstance(source, Path) and source.is_relative_to(self.folder):
                name = source.relative_to(self.folder).parts[0]
                manifest = Manifest.read(self.folder / name / "manifest.json")
                kinds |= set(manifest.labels) if manifest else set()
        return kinds

    def _set_aside(self, folder: Path) -> None:
        """Keep the last artefact of a stage that restarts, and remove the one before it."""
        if folder.exists():
            previous = self.folder / ".previous" / folder.name
            shutil.rmtree(previous, ignore_errors=True)
            previous.parent.mkdir(exist_ok=True)
            folder.rename(previous)


def is_gone(source: Source, sha256: str = "") -> bool:
    """Return true where a file or folder is missing; the hub is not queried.

    A name is a folder's where its hash, `sha256`, was one of content.
    """
    if isinstance(source, Path):
        return not source.exists()
    was_content = re.match("[0-9a-f]{64}(:|$)", sha256) is not None
    name = HubData.parse(source).name if source.startswith(HUB) else source
    return was_content and not Path(name).exists()


@contextlib.contextmanager
def open_run(folder: Path) -> Iterator[Run]:
    """Hold a run's folder for this process; ValueError if another has it or it is an older run."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder for the run, or none yet")
    for path in sorted(folder.glob("*/started.json")):
        require_schema(json.loads(path.read_text(encoding="utf-8")), path)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise ValueError(
                f"{folder} is in use by {holder}; expected one process a run"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield Run(folder)


def _started(folder: Path) -> dict[str, Any]:
    path = folder / "started.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _difference(before: Manifest, settings: Mapping[str, Any], inputs: Mapping[str, Input]) -> str:
    """Return the settings and inputs that changed, in a few words."""
    new, old = _flat(json.loads(json.dumps(settings))), _flat(before.settings)
    keys = sorted(key for key in new.keys() | old.keys() if new.get(key) != old.get(key))
    hashes = {name: each.sha256 for name, each in before.inputs.items()}
    names = sorted(name for name in inputs if hashes.get(name) != inputs[name].sha256)
    changed = [*keys[:3], *(f"input {name}" for name in names[:3])]
    return f"changed: {', '.join(changed)}" if changed else "its list of inputs changed"


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


class MetricsFile:
    """A stage's numbers: one line a step, {"step", "total", "area/quantity": number | null}.

    A resumed stage repeats the steps since its last checkpoint; their lines are replaced, so that
    its file equals that of an unbroken one. More about the current step joins its line. No times
    are in it: two runs with one seed write the same file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = _whole_lines(path)
        self.current: int | None = None  # the step this process wrote last
        if path.is_file():
            write_jsonl(path, self.rows)

    def add(self, step: Step) -> None:
        """Write a step's numbers through to the file; a step without numbers leaves no line."""
        numbers = {name: finite_or_none(float(value)) for name, value in step.metrics.items()}
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
    """Return the rows of the file up to a line that a kill left half written."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


class Meter:
    """The seconds and bytes that are used from when it is made."""

    def __init__(self) -> None:
        self.wall = time.monotonic()
        self.cpu = _cpu_s()
        with contextlib.suppress(OSError):  # Linux; elsewhere it is the whole process's peak
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def read(self) -> dict[str, Any]:
        """Return the usage since then, by the manifest's names."""
        return {
            "wall_s": round(time.monotonic() - self.wall, 3),
            "cpu_s": round(_cpu_s() - self.cpu, 3),
            "peak_rss_bytes": _peak_rss_bytes(),
        }


def _cpu_s() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _peak_rss_bytes() -> int:
    """Return the peak of this process since the reset, or of its largest child that has ended."""
    unit = 1 if sys.platform == "darwin" else 1024
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return max(int(line.split()[1]) * 1024, child)
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, child)
