"""A model's folder, looked over before anything is loaded: whole files, of a kind that can be read.

What is wrong is told by the place and what was expected. The weights themselves are not read: only
the headers of safetensors, which say how long a file must be.
"""

import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's name: a folder that holds it is an adapter
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
INDEX = ".index.json"  # beside weights in several files
JSON_FILES = (
    CONFIG,
    ADAPTER_CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
LFS = b"version https://git-lfs"
LOAD_ERRORS = (  # what transformers, PEFT and safetensors raise over files that are not right
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    EOFError,
    IndexError,
    AssertionError,
    NotImplementedError,
    pickle.UnpicklingError,
    SafetensorError,
)


def check_files(folder: Path) -> None:
    """Raise ValueError where a file that loaders read is a pointer, cut, or not JSON."""
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_json(folder / name)


def check_model_folder(folder: Path) -> None:
    """Raise ValueError unless the folder holds a model's config and whole weights, not quantised.

    The kind of model is left to the loader, which knows all kinds.
    """
    check_files(folder)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: no model there, it has no {CONFIG}; expected that and weights")
    config = read_json(folder / CONFIG)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ValueError(f"{folder / CONFIG}: model_type is {kind!r}; expected an architecture")
    if config.get("is_encoder_decoder"):
        raise ValueError(
            f"{folder / CONFIG}: '{kind}' is an encoder-decoder; expected a causal language model"
        )
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"{folder / CONFIG}: its weights are quantised ({method}); expected weights in 16 or "
            "32 bits, as its authors have them beside or before quantisation"
        )
    _check_weights(folder, WEIGHTS)


def check_model(folder: Path) -> None:
    """Raise ValueError unless the folder is that of a model, or of an adapter, and whole."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: a file; expected a model's folder")
    if (folder / ADAPTER_CONFIG).is_file():
        check_adapter_folder(folder)
    else:
        check_model_folder(folder)


def check_adapter_folder(folder: Path) -> str:
    """The kind of the adapter in the folder; ValueError unless its config and weights are whole."""
    check_files(folder)
    kind = read_json(folder / ADAPTER_CONFIG).get("peft_type")
    if not isinstance(kind, str):
        raise ValueError(f"{folder / ADAPTER_CONFIG}: peft_type is {kind!r}; expected a name")
    _check_weights(folder, ADAPTER_WEIGHTS)
    return kind


def check_whole(path: Path) -> None:
    """Raise ValueError where a file of weights is missing, a pointer, empty, or cut."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected weights")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS))
        if start == LFS:
            raise _pointer(path)
        if size == 0:
            raise ValueError(f"{path}: the file is empty; expected weights")
        if path.suffix != ".safetensors":
            return
        (header_bytes,) = struct.unpack("<Q", start[:8]) if len(start) >= 8 else (size,)
        file.seek(8)
        header = file.read(header_bytes) if header_bytes <= size - 8 else b""
    try:
        entries = json.loads(header.decode("utf-8"))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name[0] != "_"]
        needed = 8 + header_bytes + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(
            f"{path}: its header is not that of safetensors, or it is cut ({size:,} bytes)"
        ) from None
    if size < needed:
        raise ValueError(f"{path}: it is cut, {size:,} of {needed:,} bytes; copy it once more")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError for a pointer, and for anything else that is none."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if raw.startswith(LFS):
        raise _pointer(path)
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); expected an object") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON {type(value).__name__}; expected an object")
    return value


def _check_weights(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (folder / name).exists():
            check_whole(folder / name)
            return
        index = folder / f"{name}{INDEX}"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise ValueError(f"{index}: no weight_map; expected each weight's file")
            for shard in sorted({str(file) for file in shards.values()}):
                check_whole(folder / shard)
            return
    raise ValueError(f"{folder}: no weights there; expected {' or '.join(names)}")


def _pointer(path: Path) -> ValueError:
    return ValueError(
        f"{path}: a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'"
    )


def first_line(error: Exception) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


TIMEOUT_S = 10.0


def check_source(source: str | Path) -> None:
    """Raise ValueError where `source` is no folder, not in this machine's cache, not on the hub.

    Also where it is a file, or a folder whose configs and tokenizer's files are pointers or cut.

    A hub name is `name` or `owner/name`. A hub that answers anything but "no such model" (busy,
    gated) leaves the word to the loader.
    """
    if Path(source).is_dir():
        check_files(Path(source))
        return
    if Path(source).is_file():
        raise ValueError(f"{source}: a file; expected a model's folder")
    name = str(source)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ValueError(f"{name}: no such folder, and not a hub model's name")
    if not Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model")).is_dir():
        _ask_hub(name)


def _ask_hub(name: str) -> None:
    try:
        HfApi().model_info(name, timeout=TIMEOUT_S)
    except RepositoryNotFoundError:
        raise ValueError(
            f"{name}: no such folder, and no such model on the hub, or a private one"
        ) from None
    except HfHubHTTPError:
        return
    except Exception as error:  # no answer: which class says so is the HTTP library's affair
        raise ValueError(
            f"{name}: no such folder, and the hub cannot be reached ({first_line(error)})"
        ) from None
