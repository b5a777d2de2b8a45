"""`rlhf users`: demonstrations by user become a store of users' adapters."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.loading import overridden, validated
from pipeline.models.policies import policy_folder
from pipeline.runs.display import display
from reward_models.records import Demonstration
from stages.users.config import UserAdaptersConfig

STORE = "users"  # beside the base, in the model's folder


def user_adapters_config(sets: Sequence[str]) -> UserAdaptersConfig:
    """Return the settings with overrides; ValueError in one line."""
    values: dict[str, Any] = {}
    for text in sets:
        values = overridden(values, text)
    if "adaptation" in values:
        values["adaptation"] = {"family": "lora", **values["adaptation"]}
    return validated(UserAdaptersConfig, values=values)


def train_users(run: Path, source: str, out: Path | None, sets: Sequence[str], seed: int) -> Path:
    """Train an adapter for each user who has none yet; return the store's folder."""
    from stages.data.demonstrations import load_demonstrations
    from stages.models import device, load_policy, load_tokenizer, to_device
    from stages.precision import resolved
    from stages.users.store import checked_name
    from stages.users.train import open_user_store, train_user_adapters

    config, folder = user_adapters_config(sets), policy_folder(run)
    by_user: dict[str, list[Demonstration]] = defaultdict(list)
    demonstrations = load_demonstrations(source)
    for number, demonstration in enumerate(demonstrations, 1):
        if demonstration.user is None:
            raise ValueError(f"{source}: demonstration {number} names no user")
        by_user[checked_name(demonstration.user)].append(demonstration)
    store_folder = out if out is not None else folder / STORE
    with display(["users"]) as progress:
        progress.begin("users", f"{len(by_user)} users, {len(demonstrations)} demonstrations")
        weights = resolved(config.precision, device()).frozen
        tokenizer, model = load_tokenizer(folder), load_policy(folder, weights=weights)
        to_device(model, device())
        store = open_user_store(store_folder, model)
        train_user_adapters(
            model, tokenizer, by_user, config, store, seed=seed, report=progress.step
        )
        progress.finish(f"{len(store.names())} in the store")
    return store_folder
