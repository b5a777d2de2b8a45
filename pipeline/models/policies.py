"""The policy that a person means by a run, a stage or a model folder, and its export."""

import shutil
from pathlib import Path

from pipeline.runs.stage import in_round, last_round

BEST_FIRST = ("ppo-ptx", "ppo", "select", "sft")


def policy_folder(folder: Path) -> Path:
    """Return the folder of the policy; of a run, that of its last finished stage.

    Raise ValueError where there is none.
    """
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return folder
    if (folder / "model").is_dir():
        return folder / "model"
    later = [
        in_round(name, number)
        for number in range(last_round(folder, "sample"), 1, -1)
        for name in ("ppo-ptx", "ppo")
    ]
    for stage in (*later, *BEST_FIRST):
        if (folder / stage / "manifest.json").is_file():
            return folder / stage / "model"
    raise ValueError(
        f"{folder}: no policy there; expected a run with a finished stage, a stage, or a model"
    )


def export_policy(folder: Path, out: Path) -> Path:
    """Write a policy as a plain model folder, adapters merged; ValueError if `out` is taken."""
    from reward_models.atomic_files import written_aside
    from stages.adapters.config import Full
    from stages.models import adapt, load_policy, load_tokenizer, save_policy

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; expected a new folder for the model")
    with written_aside(out) as aside:
        save_policy(adapt(load_policy(folder), Full()), load_tokenizer(folder), aside)
        manifest = folder.parent / "manifest.json"
        if manifest.is_file():
            shutil.copy(manifest, aside / "origin.json")
    return out
