"""Is there such a model at all? Asked before loading: a loader's own retries take a minute."""

import re
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from reward_models.model_folder import check_files
from reward_models.one_line import first_line

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
