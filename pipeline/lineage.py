"""Where an artefact comes from: hashes by content, versions, and the manifest that names them all.

A stage's folder holds `manifest.json` once the stage is finished; it is written last. Two runs of a
stage with the same fingerprint (its settings, its seed and the content of its inputs) are the same.
"""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.rounds import latest

DISTRIBUTION = "instruct-rlhf"
LIBRARIES = ("accelerate", "datasets", "deepspeed", "numpy", "peft", "tokenizers", "torch",
             "transformers", "trl")  # fmt: skip
LEFT_OUT = ("checkpoints",)  # folders that are not part of an artefact; nor are databases


@dataclass(frozen=True, slots=True)
class Input:
    """One thing a stage read: where it lay, and the hash of what it held."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known about one finished stage. Times are seconds, memory is bytes."""

    stage: str
    fingerprint: str
    settings: Mapping[str, Any]
    seed: int
    inputs: Mapping[str, Input]
    outputs: Mapping[str, str]  # file → sha256
    labels: list[str]  # kinds of annotators behind it: human, simulated, imported
    code_version: str
    libraries: Mapping[str, str]
    started: str
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    attempts: int = 1  # above 1: it was interrupted and went on
    launched: Mapping[str, Any] = field(default_factory=dict)  # sharding and processes, if any

    def write(self, path: Path) -> None:
        """Write beside `path` and rename, so that a manifest is whole or not there."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """The manifest, or None where the stage has not finished."""
        if not path.is_file():
            return None
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            row["inputs"] = {name: Input(**found) for name, found in row["inputs"].items()}
            return cls(**row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: not a manifest of this version ({error})") from None


def label_kinds(run: Path) -> list[str]:
    """The kinds of annotators behind a run's reward model, as its manifests have them."""
    made = Manifest.read(latest(run) / "manifest.json")
    return list(made.labels) if made is not None else []


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object beside `path` and rename."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(path)


def fingerprint(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """One hash of what decides a stage's result: its settings (seed included) and its inputs."""
    said = json.dumps([stage, settings, inputs], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(said.encode()).hexdigest()


class Hashes:
    """Content hashes, remembered by size and time of change so that big files are read once."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self.known: dict[str, list[Any]] = {}
        if memory.is_file():
            self.known = json.loads(memory.read_text(encoding="utf-8"))

    def of(self, source: Path | str) -> str:
        """The hash of a file, of a folder (names and contents), or of a hub model's name."""
        path = Path(source)
        if path.is_file():
            return self._of_file(path)
        if path.is_dir():
            listed = json.dumps(self.files(path), sort_keys=True)
            return hashlib.sha256(listed.encode()).hexdigest()
        if isinstance(source, str) and source.startswith("hf:"):
            return source  # a data set of the hub, by name
        if isinstance(source, Path):
            raise ValueError(f"{source}: no such file or folder")
        return f"{source}@{_hub_commit(source)}"

    def files(self, folder: Path) -> dict[str, str]:
        """Every file of an artefact by its path inside the folder, with the hash of its content."""
        return {str(path.relative_to(folder)): self._of_file(path) for path in _artefact(folder)}

    def save(self) -> None:
        """Keep what was computed for the next command."""
        write_json(self.memory, self.known)

    def _of_file(self, path: Path) -> str:
        stat = path.stat()
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        key = str(path.absolute())
        if self.known.get(key, [])[:3] != seen:
            with path.open("rb") as content:
                self.known[key] = [*seen, hashlib.file_digest(content, "sha256").hexdigest()]
        return str(self.known[key][3])


def _artefact(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        is_left_out = set(LEFT_OUT) & set(inside) or ".sqlite" in path.name
        if path.is_file() and not is_left_out and not path.name.endswith(".part"):
            yield path


def _hub_commit(name: str) -> str:
    """The commit of a hub model in this machine's cache; 'unknown' before it was downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent.name if isinstance(found, str) else "unknown"


def libraries() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    installed = {name: version for name in LIBRARIES if (version := _version(name))}
    return {"python": platform.python_version(), **installed}


@cache
def code_version() -> str:
    """`git describe` of this checkout, or the version of the installed package."""
    here = Path(__file__).resolve().parent.parent
    if (here / ".git").exists():
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--tags"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return f"{_version(DISTRIBUTION) or 'source'}+{done.stdout.strip()}"
    return _version(DISTRIBUTION) or "source"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
