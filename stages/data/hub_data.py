"""Data sets of the hub, and folders that the datasets library reads: `hf:...`.

    hf:NAME                       its split `train`
    hf:NAME:SPLIT                 another split, or a part of one: hf:NAME:train[:10%]
    hf:NAME:CONFIG:SPLIT          of a data set with several configurations
    hf:NAME@REVISION:SPLIT        as it was at a commit, tag or branch

NAME is `owner/name` on the hub or the path of a folder.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from reward_models.model_files import first_line
from reward_models.row_files import row_as_json
from stages.config import HUB

Row = Mapping[str, Any]
FORM = "hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT"
UNKNOWN = "unknown"
TIMEOUT_S = 10.0
_COLON = re.compile(r":(?![^\[]*\])")  # not one inside brackets, as in train[:10%]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HubData:
    """The parts of `hf:...`; a configuration or revision of None is the data set's own choice."""

    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @classmethod
    def parse(cls, source: str) -> "HubData":
        """Return the parts of a source that begins with `hf:`; ValueError for another form."""
        text = source.removeprefix(HUB)
        name, *rest = [text] if Path(text).is_dir() else _COLON.split(text)
        if not name or len(rest) > 2:
            raise ValueError(f"{source}: expected {FORM}")
        config = rest[0] or None if len(rest) == 2 else None
        split = (rest[-1] if rest else "") or "train"
        if Path(name).is_dir():
            return cls(name, config, split)
        name, _, revision = name.partition("@")
        return cls(name, config, split, revision or None)

    @property
    def folder(self) -> Path | None:
        """The folder, or None for a data set of the hub."""
        return Path(self.name) if Path(self.name).is_dir() else None


def hub_rows(source: str) -> Iterator[tuple[str, Row]]:
    """Yield each row after its location; ValueError in one line where there is no such data set."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    data = HubData.parse(source)
    try:
        rows = load_dataset(data.name, data.config, split=data.split, revision=data.revision)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(f"{source}: {_reason(data, error)}") from None
    for number, row in enumerate(rows):
        where = f"{source}, row {number}"
        yield where, row_as_json(where, row)


@cache
def commit_of(kind: Literal["dataset", "model"], name: str, revision: str | None = None) -> str:
    """Return the commit of a data set or model of the hub, or `unknown`, which is logged.

    Where the hub does not answer, it is that of this machine's cache.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    if not constants.HF_HUB_OFFLINE:
        info = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
        try:
            return str(info(name, revision=revision, timeout=TIMEOUT_S).sha)
        except Exception:  # no answer: which class says so is the HTTP library's affair
            log.info("%s: the hub does not answer; this machine's cache is used", name)
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind))
    reference = folder / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    log.warning("%s: its commit is unknown, so a change of it on the hub would go unnoticed", name)
    return UNKNOWN


def _reason(data: HubData, error: Exception) -> str:
    """Return one line on why it did not load, with the configurations to choose from."""
    text = str(error)
    listed = re.search(r"(?:available configs|Available): \[(.*?)\]", text, re.DOTALL)
    if listed is None:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else None
        return f"no data set to be had ({first_line(error if cause is None else cause)})"
    names = [name.strip().strip("'\"") for name in listed.group(1).split(",")]
    wrong = "it has the configurations" if data.config is None else f"no '{data.config}' among"
    split = "train" if data.split in names else data.split  # hf:NAME:CONFIG was meant
    example = f"{HUB}{data.name}:{names[0]}:{split}"
    return f"{wrong} {', '.join(names)}; expected one of them named, such as {example}"
