"""Names of bases in saved adapters and reward models, and the folders they mean now.

    ../../select/model               the base lies in the same run: the path from the folder saved
    package:pipeline/quickstart/base it came with an installed package
    /models/llama, owner/name        it lies elsewhere, or on the hub

So a run can be moved, alone or with all that it was made from. A base from outside that has moved
is found where the run's config says now. Its hash, which lies beside the name, is checked by
whoever loads it.
"""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import yaml

from reward_models.model_files import ADAPTER_CONFIG

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

    A hub model is given as it is named. `sha256` is that of its weights, for the message.
    """
    named = _place(name, folder)
    if named is None:
        return name
    candidates = [named, *_configured(folder)]
    for candidate in candidates:
        if candidate.is_dir():
            return str(candidate)
    raise ValueError(
        f"{folder}: its base did not load: {named}: no such folder (weights {sha256[:8]}…); say "
        f"where it is now with rlhf run CONFIG --set model=FOLDER, or as model in its {RUN_CONFIG}"
    )


def resolve_base_name(name: str, folder: Path) -> str:
    """The same name where it no longer depends on the folder that it was written in."""
    path = _place(name, folder)
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
    """The folder as a part of the importable package that it came with, if it did."""
    inside = [above for above in path.parents if (above / "__init__.py").is_file()]
    if not inside or _package(inside[-1].name) != inside[-1]:
        return None
    return PACKAGE + path.relative_to(inside[-1].parent).as_posix()


def _package(name: str) -> Path | None:
    spec = find_spec(name)
    locations = [] if spec is None else list(spec.submodule_search_locations or ())
    return Path(locations[0]).resolve() if locations else None


def _place(name: str, folder: Path) -> Path | None:
    """The folder that a name means; None for a hub model's."""
    if name.startswith(PACKAGE):
        top, _, rest = name.removeprefix(PACKAGE).partition("/")
        package = _package(top)
        return Path(name) if package is None else package / rest
    if name.startswith(".") or Path(name).is_absolute():
        return (folder / name).resolve()
    return Path(name) if Path(name).is_dir() else None


def _configured(folder: Path) -> list[Path]:
    """The models that the config of the run around `folder` names."""
    whole = folder.resolve()
    path = next(
        (above / RUN_CONFIG for above in whole.parents if (above / RUN_CONFIG).is_file()), None
    )
    if path is None:
        return []
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    models = [config.get(key) for key in ("model", "reward_base")] if config else []
    return [Path(model) for model in models if isinstance(model, str)]
