"""From the texts of a config that name files, models and data sets to the inputs of a stage."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from stages.config_base import HUB, named, shown

Source = Path | str
QUICKSTART = Path(__file__).parent / "quickstart"


def model_source(name: str) -> Source:
    """A folder as a Path, the shipped base for `quickstart`, else a model's name on the hub."""
    if name == "quickstart" or name.startswith("quickstart/"):
        return QUICKSTART / (name.partition("/")[2] or "base")
    path = Path(name).expanduser()
    looks_like_a_path = path.is_absolute() or name.startswith(".") or name.count("/") > 1
    return path if path.exists() or looks_like_a_path else name


def data_source(name: str) -> Source:
    """A file or folder as a Path; a data set that begins with `hf:` as it is written."""
    return name if name.startswith(HUB) else Path(name)


def named_inputs(config: BaseModel, *above: str) -> dict[str, Source]:
    """Everything that a part of a config names and whose content decides a result, by its key."""
    return dict(_sources(config, above))


def _sources(config: BaseModel, above: tuple[str, ...]) -> Iterator[tuple[str, Source]]:
    for path, marker, text in named(config, above):
        key = shown(path)
        if not marker.decides:
            continue
        match marker.what:
            case "file":
                yield key, Path(text)
            case "model":
                yield key, model_source(text)
            case "data":
                yield key, data_source(text)
