"""A model's folder: its files checked before anything is loaded, and the name of its base.

Checks say which file is wrong and what was expected. Of weights only the headers of safetensors are
read, which have the length of the file.

Saved adapters and reward models name their base:

    ../../select/model               in the same run: the path from the folder saved
    package:pipeline/quickstart/base came with an installed package
    /models/llama, owner/name        elsewhere, or on the hub

So a run can be moved, alone or with all that it was made from. A base from outside that has moved
is looked for where the run's config now has it. Its hash, beside the name, is checked on loading.
"""

import json
import os
import pickle
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError, safe_open

CONFIG = "config.json"
BASE_FILE = "base.json"  # beside an adapter: "name", "weights_sha256", "token_rows" of its base
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
LOAD_ERRORS = (  # of transformers, PEFT and safetensors over wrong files
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
    """Raise ValueError where a JSON file of a model is a pointer, cut, or not JSON."""
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_json(folder / name)


def check_model_folder(folder: Path) -> None:
    """Raise ValueError unless the folder holds a model's config and whole weights.

    Quantised ones must be bitsandbytes'. The kind of model is left to the loader, which knows all
    kinds.
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
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
    if method and method != "bitsandbytes":
        raise ValueError(
            f"{folder / CONFIG}: its weights are quantised ({method}); expected bitsandbytes, or "
            "weights in 16 or 32 bits, as its authors have them beside or before quantisation"
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
    """Return the adapter's type; ValueError unless its config and weights are whole."""
    check_files(folder)
    kind = read_json(folder / ADAPTER_CONFIG).get("peft_type")
    if not isinstance(kind, str):
        raise ValueError(f"{folder / ADAPTER_CONFIG}: peft_type is {kind!r}; expected a name")
    _check_weights(folder, ADAPTER_WEIGHTS)
    return kind


def peft_base(folder: Path) -> str:
    """Return the base that PEFT's config of an adapter names; ValueError where it names none."""
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: base_model_name_or_path is {name!r}; expected the base's "
            "folder or its name on the hub"
        )
    beside = Path(resolve_base_name(name, folder))
    return str(beside) if beside.is_dir() else name


def check_whole(path: Path) -> None:
    """Raise ValueError where a file of weights is missing, a pointer, empty, or cut."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected weights")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path}: the file is empty; expected weights")
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise _pointer(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "np"):  # which reads the header and compares the file's size
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path}: it is cut, or not safetensors ({size:,} bytes; {first_line(error)}); "
                "copy it once more"
            ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; ValueError for a pointer and anything else."""
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
    """Return the first line of an error's message; its class where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


TIMEOUT_S = 10.0


def check_source(source: str | Path) -> None:
    """Raise ValueError where `source` is no folder, not in this machine's cache, not on the hub.

    Also where it is a file, or a folder whose JSON files are pointers or cut. A hub name is `name`
    or `owner/name`. What a hub answers beside "no such model" (busy, gated) is left to the loader.
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
        _require_on_hub(name)


def _require_on_hub(name: str) -> None:
    try:
        HfApi().model_info(name, timeout=TIMEOUT_S)
    except RepositoryNotFoundError:
        raise ValueError(
            f"{name}: no such folder, and no such model on the hub, or a private one"
        ) from None
    except HfHubHTTPError:
        return
    except Exception as error:  # no answer: the class depends on the HTTP library
        raise ValueError(
            f"{name}: no such folder, and the hub cannot be reached ({first_line(error)})"
        ) from None


PACKAGE = "package:"
RUN_CONFIG = "config.yaml"  # of a run, in its folder
_PARTS = ("model", "model.part", "critic", "critic.part", "checkpoints", "sent")  # of a stage


def base_name(base: str, folder: Path) -> str:
    """Return the name of a base, a path or a hub model's name, for files saved in `folder`."""
    if not Path(base).is_dir():
        return base
    path, here = Path(base).resolve(), folder.resolve()
    if here.is_relative_to(path) or _in_one_run(path, here):
        return os.path.relpath(path, here)
    return _in_package(path) or str(path)


def base_source(name: str, folder: Path, sha256: str) -> str:
    """Return the present folder of a base that `folder` names; ValueError where it is gone.

    A hub model's name is returned as it is. `sha256` is that of its weights, for the message.
    """
    expected = _base_folder(name, folder)
    if expected is None:
        return name
    candidates = [expected, *_configured(folder)]
    for candidate in candidates:
        if candidate.is_dir():
            return str(candidate)
    raise ValueError(
        f"{folder}: its base did not load: {expected}: no such folder (weights {sha256[:8]}…); set "
        f"where it is now with rlhf run CONFIG --set model=FOLDER, or as model in its {RUN_CONFIG}"
    )


def resolve_base_name(name: str, folder: Path) -> str:
    """Return the same name, independent of the folder that it was written in."""
    path = _base_folder(name, folder)
    return name if path is None else str(path)


def write_base_name(folder: Path, name: str) -> None:
    """Write the name into PEFT's config of the adapter in `folder`."""
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = name
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _in_one_run(base: Path, folder: Path) -> bool:
    """Return true where `base` is RUN/STAGE/model and `folder` a stage of RUN, or part of one."""
    run = base.parent.parent
    if base.name != "model" or not folder.is_relative_to(run):
        return False
    stage = folder.relative_to(run).parts
    return len(stage) == 1 or (len(stage) > 1 and stage[1] in _PARTS)


def _in_package(path: Path) -> str | None:
    """Return the folder as a part of the importable package that it came with, if it did."""
    inside = [above for above in path.parents if (above / "__init__.py").is_file()]
    if not inside or _package(inside[-1].name) != inside[-1]:
        return None
    return PACKAGE + path.relative_to(inside[-1].parent).as_posix()


def _package(name: str) -> Path | None:
    spec = find_spec(name)
    locations = [] if spec is None else list(spec.submodule_search_locations or ())
    return Path(locations[0]).resolve() if locations else None


def _base_folder(name: str, folder: Path) -> Path | None:
    """Return the folder that a name means; None for a hub model's."""
    if name.startswith(PACKAGE):
        top, _, rest = name.removeprefix(PACKAGE).partition("/")
        package = _package(top)
        return Path(name) if package is None else package / rest
    if name.startswith(".") or Path(name).is_absolute():
        return (folder / name).resolve()
    return Path(name) if Path(name).is_dir() else None


def _configured(folder: Path) -> list[Path]:
    """Return the models that the config of the run around `folder` names."""
    whole = folder.resolve()
    path = next(
        (above / RUN_CONFIG for above in whole.parents if (above / RUN_CONFIG).is_file()), None
    )
    if path is None:
        return []
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    models = [config.get(key) for key in ("model", "reward_base", "policy")] if config else []
    return [Path(model) for model in models if isinstance(model, str)]
