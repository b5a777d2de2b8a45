"""Weights as they are stored: the dtypes in a model's files, and a hash of quantised ones."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from reward_models.model_files import INDEX, WEIGHTS, read_json

_NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def weight_files(source: str) -> list[Path]:
    """Return the safetensors files of a folder, or of a hub model that has been loaded.

    An empty list where the weights are in files of another format.
    """
    name = WEIGHTS[0]
    whole = _file(source, name)
    if whole is not None:
        return [whole]
    index = _file(source, f"{name}{INDEX}")
    if index is None:
        return []
    shards = sorted({str(shard) for shard in read_json(index)["weight_map"].values()})
    return [path for shard in shards if (path := _file(source, shard)) is not None]


def stored_dtypes(source: str) -> frozenset[torch.dtype]:
    """Return the floating-point dtypes of a model's files; float32 where they cannot be told."""
    names: set[str] = set()
    for path in weight_files(source):
        with safe_open(path, "pt") as file:
            names |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    floating = [name for name in names if name.lstrip("B").startswith("F")]
    return frozenset(_NAMES.get(name, torch.float32) for name in floating or ["F32"])


def widest(dtypes: frozenset[torch.dtype]) -> torch.dtype:
    """Return the dtype that holds weights of all these exactly."""
    return next(iter(dtypes)) if len(dtypes) == 1 else torch.float32


def file_stamp(source: str) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when the files of a model do."""
    stats = [(str(path), path.stat()) for path in weight_files(source)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def files_hash(paths: Sequence[Path]) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of all tensors, in order of name."""
    digest = hashlib.sha256()
    names: dict[str, Path] = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            names |= dict.fromkeys(file.keys(), path)
    for name, path in sorted(names.items()):
        with safe_open(path, "pt") as file:
            tensor = file.get_tensor(name).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file(source: str, name: str) -> Path | None:
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    cached = try_to_load_from_cache(source, name)
    return Path(cached) if isinstance(cached, str) else None
