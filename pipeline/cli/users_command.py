"""`rlhf users`: demonstrations by user become a store of users' adapters."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.loading import overridden
from pipeline.config.messages import first_error
from pipeline.models.policy_folder import policy_folder
from pipeline.runs.display import display
from reward_models.records import Demonstration
from stages.users.config import UserAdaptersConfig

STORE = "users"  # beside the base, in the model's folder


def user_adapters_config(sets: Sequence[str]) -> UserAdaptersConfig:
    """The settings with overrides; ValueError in one line for what is not allowed."""
    chosen: dict[str, Any] = {}
    for text in sets:
        chosen = overridden(chosen, text)
    if "adaptation" in chosen:
        chosen["adaptation"] = {"family": "lora", **chosen["adaptation"]}
    try:
        return UserAdaptersConfig.model_validate(chosen)
    except ValidationError as error:
        raise ValueError(f"--set {first_error(error, UserAdaptersConfig)}") from None


def train_users(place: Path, source: str, out: Path | None, sets: Sequence[str], seed: int) -> Path:
    """Train an adapter for each user who has none yet; return the store's folder."""
    from stages.data.demonstrations import load_demonstrations
    from stages.models import device, load_policy, load_tokenizer
    from stages.users.store import checked_name
    from stages.users.train import open_user_store, train_user_adapters

    config, folder = user_adapters_config(sets), policy_folder(place)
    told: dict[str, list[Demonstration]] = defaultdict(list)
    for number, one in enumerate(load_demonstrations(source), 1):
        if one.user is None:
            raise ValueError(f"{source}: demonstration {number} names no user")
        told[checked_name(one.user)].append(one)
    store_folder = out if out is not None else folder / STORE
    with display(["users"]) as shown:
        shown.begin("users", f"{len(told)} users, {sum(map(len, told.values()))} demonstrations")
        tokenizer, model = load_tokenizer(folder), load_policy(folder)
        model.to(device())  # type: ignore[arg-type]  # the decorator hides nn.Module's signature
        store = open_user_store(store_folder, model)
        train_user_adapters(model, tokenizer, told, config, store, seed=seed, report=shown.step)
        shown.finish(f"{len(store.names())} in the store")
    return store_folder
