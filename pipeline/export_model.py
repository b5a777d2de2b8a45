"""A policy as a plain model folder: adapters merged into their base, tokenizer beside it."""

import shutil
from pathlib import Path

from pipeline.policy_folder import policy_folder
from stages.config import Full
from stages.models import adapt, load_policy, load_tokenizer, save_policy


def export_policy(place: Path, out: Path) -> Path:
    """Write the policy of a run, stage or model folder to `out`; ValueError if that is taken."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; expected a new folder for the model")
    folder = policy_folder(place)
    aside = out.with_name(out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    merged = adapt(load_policy(folder), Full())
    save_policy(merged, load_tokenizer(folder), aside)
    origin = folder.parent / "manifest.json"
    if origin.is_file():
        shutil.copy(origin, aside / "origin.json")
    if out.exists():
        out.rmdir()
    aside.rename(out)
    return out
