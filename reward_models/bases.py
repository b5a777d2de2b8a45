"""Names of bases in saved adapters and reward models, and the folders they mean now.

    ../../select/model               the base lies in the same run: the path from the folder saved
    package:pipeline/quickstart/base it came with an installed package
    /models/llama, owner/name        it lies elsewhere, or on the hub

So a run can be moved, alone or with all that it was made from. A base from outside that has moved
is found where the run's config says now. Its hash, which lies beside the name, is checked by
whoever loads it.
"""

import hashlib
import json
import os
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path

import torch
import yaml
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AutoConfig, PreTrainedModel

from reward_models.model_folder import ADAPTER_CONFIG, CONFIG

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


def base_place(name: str, folder: Path) -> str:
    """The same name where it no longer depends on the folder that it was written in."""
    path = _place(name, folder)
    return name if path is None else str(path)


def name_base(folder: Path, name: str) -> None:
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


_own_rows: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()


def widen(model: PreTrainedModel, rows: int) -> None:
    """Give the token tables `rows` rows; a new row is the mean of the old ones, and none of them.

    Tables that have as many are left alone.
    """
    own = model.get_input_embeddings().get_parameter("weight").shape[0]
    if rows <= own:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for weight_VD in _tables(model):
            weight_VD[own:] = weight_VD[:own].mean(dim=0)
            _own_rows[weight_VD] = own


def own_rows(model: nn.Module, source: str = "") -> int:
    """Return the number of token rows that are the base's own: no more than its `source` has."""
    weight_VD = _tables(_base(model))[0]
    own = _own_rows.get(weight_VD, weight_VD.shape[0])
    if not (Path(source) / CONFIG).is_file():
        return own
    config = AutoConfig.from_pretrained(source).get_text_config()
    return min(own, int(config.vocab_size))


def weights_hash(model: nn.Module, rows: int | None = None) -> str:
    """sha256 over names, shapes and float32 values of the base's weights, adapters left out.

    Buffers that are saved count too. Of the token tables the first `rows` count; None: the base's
    own.
    """
    base = _base(model)
    tables = {id(weight) for weight in _tables(base)}
    counted = own_rows(base) if rows is None else rows
    left_out = adapter_tensors(base)
    saved = base.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in sorted(saved.items(), reverse=True)}
    digest = hashlib.sha256()
    for name, tensor in sorted(saved.items()):
        if id(tensor) in left_out or first[id(tensor)] != name:
            continue
        weight = tensor.detach()[:counted] if id(tensor) in tables else tensor.detach()
        digest.update(f"{name.replace('.base_layer.', '.')} {tuple(weight.shape)}".encode())
        digest.update(weight.float().cpu().contiguous().flatten().numpy().data)
    return digest.hexdigest()


def adapter_parameters(model: nn.Module) -> set[int]:
    """The ids of all parameters that adapters hold beside the modules they wrap."""
    return {id(p) for child in _adapters(model) for p in child.parameters()}


def adapter_tensors(model: nn.Module) -> set[int]:
    """The ids of all parameters and buffers that adapters hold beside what they wrap."""
    buffers = {id(b) for child in _adapters(model) for b in child.buffers()}
    return adapter_parameters(model) | buffers


def _adapters(model: nn.Module) -> list[nn.Module]:
    return [
        child
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for name, child in layer.named_children()
        if name != "base_layer"
    ]


def _base(model: nn.Module) -> PreTrainedModel:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def _tables(base: PreTrainedModel) -> list[Tensor]:
    """The weights of the embedding and of the unembedding, where there is one."""
    unembedding = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    modules = (base.get_input_embeddings(), unembedding)
    bare = [m.get_base_layer() if isinstance(m, BaseTunerLayer) else m for m in modules]
    return [m.weight for m in bare if isinstance(m, nn.Embedding | nn.Linear)]
