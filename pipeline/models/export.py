"""A policy as a plain model folder: adapters merged into their base, tokenizer beside it."""

import shutil
from pathlib import Path

from stages.adapters.config import Full
from stages.models import adapt, load_policy, load_tokenizer, save_policy


def export_policy(folder: Path, out: Path) -> Path:
    """Write the policy in `folder` to `out`; ValueError if that is taken."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; expected a new folder for the model")
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
