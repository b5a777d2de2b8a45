"""Provenance: hashes by content, versions, and the manifest that names them all.

A stage's folder holds `manifest.json` once the stage is finished; it is written last. Two runs of a
stage with the same fingerprint (its settings, its seed and the content of its inputs) are the same.
"""

import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.runs.stage import Source, latest
from reward_models.atomic_files import write_json
from reward_models.model_files import ADAPTER_CONFIG, BASE_FILE, check_model, peft_base
from stages.config import HUB, external_names, key_path
from stages.data.hub_data import HubData, commit_of

DISTRIBUTION = "instruct-rlhf"
LIBRARIES = [
    "accelerate",
    "datasets",
    "deepspeed",
    "numpy",
    "peft",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
]
SCHEMA = 2  # of started.json and manifest.json; 1 was before version 0.2


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a stage: its path or name, and the hash of its content."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The provenance of one finished stage. Times are seconds, memory is bytes."""

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
    attempts: int = 1  # above 1: it was interrupted and resumed
    launched: Mapping[str, Any] = field(default_factory=dict)  # sharding and processes, if any
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        """Write beside `path` and rename, so that a manifest is whole or not there."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """Return the manifest, or None where the stage has not finished."""
        if not path.is_file():
            return None
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            require_schema(row, path)
            row["inputs"] = {name: Input(**each) for name, each in row["inputs"].items()}
            return cls(**row)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: not a manifest ({error})") from None


def require_schema(row: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError for a manifest.json or started.json of another version."""
    if row.get("schema", 1) != SCHEMA:
        version = str(row.get("code_version", "0.1")).partition("+")[0]
        raise ValueError(
            f"{path.parent.parent} was begun by version {version}: finish it with that version, or "
            "start a new run with --out"
        )


def label_kinds(run: Path) -> list[str]:
    """Return the kinds of annotators behind a run's reward model, from its manifests."""
    manifest = Manifest.read(latest(run) / "manifest.json")
    if manifest is not None:
        return list(manifest.labels)
    others = map(Manifest.read, sorted(run.glob("ppo*/manifest.json")))  # by another's reward model
    return sorted({kind for each in others if each is not None for kind in each.labels})


def fingerprint(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Input]) -> str:
    """Return one hash of everything that decides a stage's result: settings, seed and inputs."""
    hashes = {name: each.sha256 for name, each in inputs.items()}
    text = json.dumps([stage, settings, hashes], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Hashes:
    """Content hashes, cached by size and time of change so that big files are read once.

    Files beside the cache are listed by their path from there, so that both can be moved.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.home = cache.parent.absolute()
        self.known: dict[str, list[Any]] = {}
        if cache.is_file():
            self.known = json.loads(cache.read_text(encoding="utf-8"))

    def of(self, source: Path | str) -> str:
        """Return the hash of a file or folder (names and contents), or hub name and commit."""
        if isinstance(source, str) and source.startswith(HUB):
            return self._of_data(HubData.parse(source))
        path = Path(source)
        if path.is_file():
            return self._of_file(path)
        if path.is_dir():
            return self._of_folder(path)
        if isinstance(source, Path):
            raise ValueError(f"{source}: no such file or folder")
        return f"{source}@{commit_of('model', source)}"

    def files(self, folder: Path) -> dict[str, str]:
        """Return every file of an artefact, by its path inside, with the hash of its content.

        Checkpoints and databases are no part of it.
        """
        return {
            str(path.relative_to(folder)): self._of_file(path)
            for path in _visible(folder)
            if "checkpoints" not in path.relative_to(folder).parts and ".sqlite" not in path.name
        }

    def save(self) -> None:
        """Write the cache for the next command."""
        write_json(self.cache, self.known)

    def _of_data(self, data: HubData) -> str:
        """Return the content hash of an `hf:` folder, or the commit of a data set of the hub."""
        chosen = f"{data.config or ''}:{data.split}"
        if data.folder is not None:
            return f"{self._of_folder(data.folder)}:{chosen}"
        return f"{data.name}@{commit_of('dataset', data.name, data.revision)}:{chosen}"

    def _of_folder(self, folder: Path) -> str:
        """Return the hash of all files in the folder but hidden ones."""
        files = {str(path.relative_to(folder)): self._of_file(path) for path in _visible(folder)}
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    def _of_file(self, path: Path) -> str:
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        whole = path.absolute()
        inside = whole.is_relative_to(self.home)
        key = str(whole.relative_to(self.home) if inside else whole)
        if self.known.get(key, [])[:3] != state:
            with path.open("rb") as content:
                self.known[key] = [*state, hashlib.file_digest(content, "sha256").hexdigest()]
        return str(self.known[key][3])


def content_hash(source: Path | str) -> str:
    """Return the hash of one input, without a cache."""
    return Hashes(Path(".hashes.json")).of(source)


def _visible(folder: Path) -> Iterator[Path]:
    """Yield its files in order, but hidden and half-written ones, and stores of users.

    Those are written into a model's folder after it is finished.
    """
    stores = {store.parent for store in folder.rglob("users/base.json")}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        half = path.name.endswith(".part")
        if path.is_file() and not hidden and not half and stores.isdisjoint(path.parents):
            yield path


def libraries() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide numbers."""
    installed = {name: version for name in LIBRARIES if (version := _version(name))}
    return {"python": platform.python_version(), **installed}


@functools.cache
def code_version() -> str:
    """Return `git describe` of this checkout, or the version of the installed package."""
    here = Path(__file__).resolve().parents[2]
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


QUICKSTART = Path(__file__).parents[1] / "quickstart"


def model_source(name: str) -> Source:
    """Return a folder as a Path, the shipped base for `quickstart`, else a model's hub name."""
    if name == "quickstart" or name.startswith("quickstart/"):
        return QUICKSTART / (name.partition("/")[2] or "base")
    path = Path(name).expanduser()
    looks_like_a_path = path.is_absolute() or name.startswith(".") or name.count("/") > 1
    return path if path.exists() or looks_like_a_path else name


def checked_source(name: str) -> Source:
    """Return `model_source`; ValueError where that is a model's folder that is not whole."""
    source = model_source(name)
    if isinstance(source, Path) and source.exists():
        check_model(source)
    return source


def with_base(name: str, source: Source) -> dict[str, Source]:
    """Return a model as an input, and the base of an adapter that was saved without its hash."""
    folder = Path(source)
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / BASE_FILE).is_file():
        return {name: source}
    return {name: source, f"base of {name}": model_source(peft_base(folder))}


def named_inputs(config: BaseModel, *above: str) -> dict[str, Source]:
    """Return everything a part of a config names and whose content decides a result, by key."""
    return {
        key_path(path): model_source(text) if marker.what == "model" else data_source(text)
        for path, marker, text in external_names(config, above)
        if marker.decides
    }


def data_source(name: str) -> Source:
    """Return a file or folder as a Path; a data set that begins with `hf:` as it is written."""
    return name if name.startswith(HUB) else Path(name)
