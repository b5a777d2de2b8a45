"""A run's folder: which stages are finished, which go on, which begin anew; one process at a time.

runs/NAME/config.yaml             the config as it was understood
runs/NAME/STAGE/                  one artefact a stage
runs/NAME/STAGE/started.json      written first: the fingerprint that the stage is working on
runs/NAME/STAGE/metrics.jsonl     its numbers, step by step
runs/NAME/STAGE/manifest.json     written last: without it the stage did not finish
runs/NAME/.previous/STAGE         the artefact that a changed config or input replaced
"""

import fcntl
import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.runs import manifest as lineage
from pipeline.runs.manifest import Hashes, Input, Manifest
from pipeline.runs.metrics import MetricsFile
from stages.config import HUB
from stages.data.hub_data import HubData
from stages.progress import Report, Step


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds and bytes between the start of a meter and its reading."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int


class Meter:
    """Starts when it is made; `read` gives what was used since."""

    def __init__(self) -> None:
        self.wall = time.monotonic()
        self.cpu = _cpu_s()
        _forget_peak()

    def read(self) -> Usage:
        """What was used since the meter was made."""
        wall, cpu = time.monotonic() - self.wall, _cpu_s() - self.cpu
        return Usage(round(wall, 3), round(cpu, 3), _peak_rss_bytes())


def _cpu_s() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _forget_peak() -> None:
    """Let Linux count the peak anew; elsewhere it stays the peak of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak_rss_bytes() -> int:
    """Of this process since it was forgotten, or of its largest child that has ended."""
    unit = 1 if sys.platform == "darwin" else 1024
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return max(int(line.split()[1]) * 1024, child)
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, child)


State = Literal["finished", "interrupted", "changed", "new"]
Source = Path | str


def no_labels(_: Path) -> set[str]:
    """For stages that add no rankings of their own."""
    return set()


def nothing_found(_: Path) -> Mapping[str, Any]:
    """For stages all of whose settings are known before they work."""
    return {}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run: what decides its result, and the work.

    `work(folder, report)` leaves the artefact in `folder` and goes on from what it finds there.
    `labels(folder)` names the kinds of annotators whose rankings the stage adds. `found(folder)`
    are settings as they are when the work is done, such as what people answered meanwhile.
    """

    name: str
    about: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Source]
    work: Callable[[Path, Report], None]
    labels: Callable[[Path], set[str]] = no_labels
    found: Callable[[Path], Mapping[str, Any]] = nothing_found
    trains: bool = False  # may be spread over processes
    launched: Mapping[str, Any] = field(default_factory=dict)  # how it is spread, if it is


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a stage stands: its state, why, and the fingerprint it has to have."""

    state: State
    why: str
    fingerprint: str
    inputs: Mapping[str, Input]


class Run:
    """One run's folder, held by this process. Made by `open_run`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hashes = Hashes(folder / ".hashes.json")

    def standing(self, stage: Stage) -> Standing:
        """Compare a stage with what lies in its folder; ValueError where an input is missing.

        An input from outside that is gone counts as it was, where the stage is finished: a run that
        was moved need not bring the files along that its data sets were made from.
        """
        done = Manifest.read(self.folder / stage.name / "manifest.json")
        before = {} if done is None else done.inputs
        inputs = {
            name: self._input(source, before.get(name)) for name, source in stage.inputs.items()
        }
        wanted = lineage.fingerprint(
            stage.name, stage.settings, {name: found.sha256 for name, found in inputs.items()}
        )
        folder = self.folder / stage.name
        if done is not None:
            why = "" if done.fingerprint == wanted else _difference(done, stage, inputs)
            if not why and dict(done.outputs) != self._outputs(folder):
                why = "its files are not those it wrote"
            return Standing("changed" if why else "finished", why, wanted, inputs)
        begun = _begun(folder)
        if not begun:
            return Standing("new", "", wanted, inputs)
        if begun["fingerprint"] == wanted:
            return Standing("interrupted", "", wanted, inputs)
        return Standing(
            "changed", "it was interrupted under other settings or inputs", wanted, inputs
        )

    def execute(self, stage: Stage, standing: Standing, report: Report) -> Manifest:
        """Do a stage's work, or go on with it; the manifest is written when all of it is there."""
        folder = self.folder / stage.name
        if standing.state in ("changed", "new"):
            self._set_aside(folder)
        attempts = int(_begun(folder).get("attempts", 0)) + 1
        folder.mkdir(parents=True, exist_ok=True)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        begun = {"fingerprint": standing.fingerprint, "started": started, "attempts": attempts}
        lineage.write_json(folder / "started.json", begun)
        metrics, meter = MetricsFile(folder / "metrics.jsonl"), Meter()

        def listen(step: Step) -> None:
            metrics.add(step)
            report(step)

        stage.work(folder, listen)
        used = meter.read()
        settings = {**stage.settings, **stage.found(folder)}
        hashes = {name: found.sha256 for name, found in standing.inputs.items()}
        manifest = Manifest(
            stage=stage.name,
            fingerprint=lineage.fingerprint(stage.name, settings, hashes),
            settings=settings,
            seed=int(stage.settings["seed"]),
            inputs=standing.inputs,
            outputs=self._outputs(folder),
            labels=sorted(self._labels_behind(stage) | stage.labels(folder)),
            code_version=lineage.code_version(),
            libraries=lineage.libraries(),
            started=started,
            wall_s=used.wall_s,
            cpu_s=used.cpu_s,
            peak_rss_bytes=used.peak_rss_bytes,
            attempts=attempts,
            launched=stage.launched,
        )
        manifest.write(folder / "manifest.json")
        self.hashes.save()
        return manifest

    def _input(self, source: Source, before: Input | None) -> Input:
        inside = isinstance(source, Path) and source.is_relative_to(self.folder)
        shown = source.relative_to(self.folder) if inside and isinstance(source, Path) else source
        same = before is not None and not inside and before.path == str(source)
        if before is not None and same and is_gone(source, before.sha256):
            return before
        return Input(str(shown), self.hashes.of(source))

    def _outputs(self, folder: Path) -> dict[str, str]:
        found = self.hashes.files(folder)
        return {
            name: found[name] for name in found if name not in ("started.json", "manifest.json")
        }

    def _labels_behind(self, stage: Stage) -> set[str]:
        """The kinds of annotators behind the inputs that other stages of this run made."""
        kinds: set[str] = set()
        for source in stage.inputs.values():
            if isinstance(source, Path) and source.is_relative_to(self.folder):
                name = source.relative_to(self.folder).parts[0]
                made = Manifest.read(self.folder / name / "manifest.json")
                kinds |= set(made.labels) if made else set()
        return kinds

    def _set_aside(self, folder: Path) -> None:
        """Keep the last artefact of a stage that begins anew, and forget the one before it."""
        if folder.exists():
            kept = self.folder / ".previous" / folder.name
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(exist_ok=True)
            folder.rename(kept)


def is_gone(source: Source, sha256: str = "") -> bool:
    """Return true where a file or folder is missing; the hub is not asked.

    A name is a folder's where its hash, `sha256`, was one of content.
    """
    if isinstance(source, Path):
        return not source.exists()
    was_content = re.match("[0-9a-f]{64}(:|$)", sha256) is not None
    name = HubData.parse(source).name if source.startswith(HUB) else source
    return was_content and not Path(name).exists()


@contextmanager
def open_run(folder: Path) -> Iterator[Run]:
    """Hold a run's folder for this process; raise ValueError if another one has it."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder for the run, or none yet")
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


def _begun(folder: Path) -> dict[str, Any]:
    path = folder / "started.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _difference(done: Manifest, stage: Stage, inputs: Mapping[str, Input]) -> str:
    """What is not as it was, in a few words."""
    now, before = _flat(json.loads(json.dumps(stage.settings))), _flat(done.settings)
    keys = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
    was = {name: given.sha256 for name, given in done.inputs.items()}
    names = sorted(name for name in inputs if was.get(name) != inputs[name].sha256)
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
