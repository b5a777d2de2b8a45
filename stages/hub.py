"""Is a name on the hub at all? Asked once, before loading: a loader's own retries take a minute."""

from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name

TIMEOUT_S = 10.0


def check_hub(name: str) -> None:
    """Raise ValueError where `name` is neither in this machine's cache nor to be had from the hub.

    A hub that answers anything but "no such model" (busy, gated) leaves the word to the loader.
    """
    cached = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))
    if cached.is_dir():
        return
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


def first_line(error: Exception) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
