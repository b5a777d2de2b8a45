"""A folder of users' adapters beside their base; those used last are cached in memory.

STORE/base.json                        the base's name and hash; adapters of others are refused
STORE/NAME/base.json                   a copy of it; a base around the store is named from the store
STORE/NAME/adapter_config.json         one user's adapter in PEFT's form: PeftModel loads it alone
STORE/NAME/adapter_model.safetensors
"""

import json
import re
from collections import OrderedDict
from pathlib import Path

from safetensors.torch import load_file, save_file

from reward_models.atomic_files import write_json, written_aside
from reward_models.model_files import base_name as name_from
from stages.users.adapters import UserAdapter

BASE, CONFIG, WEIGHTS = "base.json", "adapter_config.json", "adapter_model.safetensors"
IN_MEMORY = 256  # adapters; a LoRA of rank 8 on a 135M model is about 2 MB


class UserStore:
    """Users' adapters by name. Not for two processes that write the same user."""

    def __init__(
        self, folder: Path, *, base_name: str, base_hash: str, in_memory: int = IN_MEMORY
    ) -> None:
        """Open or begin a store; ValueError where it belongs to another base."""
        self.folder, self.in_memory = folder, in_memory
        self.base_name, self.base_hash = base_name, base_hash
        self._cache: OrderedDict[str, UserAdapter] = OrderedDict()
        if (folder / BASE).is_file():
            base = json.loads((folder / BASE).read_text(encoding="utf-8"))
            if base["weights_sha256"] != base_hash:
                raise ValueError(
                    f"{folder} holds adapters of base {base['weights_sha256'][:8]}… "
                    f"({base['name']}), {base_name} is {base_hash[:8]}…: an adapter only fits the "
                    "weights it was trained on"
                )

    def names(self) -> list[str]:
        """Return every user with an adapter, in order."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{CONFIG}"))

    def __contains__(self, name: str) -> bool:
        return (self.folder / checked_name(name) / CONFIG).is_file()

    def get(self, name: str) -> UserAdapter:
        """Return a user's adapter; ValueError with the names of some others if there is none."""
        if name not in self._cache:
            if name not in self:
                names = self.names()
                some = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
                raise ValueError(
                    f"{self.folder}: no adapter of user '{name}'; there are: {some or 'none'}"
                )
            self._cache[name] = read_adapter(self.folder / name)
        return self._cached(name)

    def put(self, name: str, adapter: UserAdapter) -> None:
        """Write a user's adapter; the one before is replaced."""
        path = self.folder / checked_name(name)
        base = {
            "name": name_from(self.base_name, self.folder),
            "weights_sha256": self.base_hash,
        }
        write_json(self.folder / BASE, base)
        config = {**adapter.config, "base_model_name_or_path": name_from(self.base_name, path)}
        tensors = {key: value.contiguous() for key, value in adapter.tensors.items()}
        with written_aside(path) as aside:
            aside.mkdir()
            write_json(aside / BASE, base)
            save_file(tensors, str(aside / WEIGHTS))
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            (aside / CONFIG).write_text(text, encoding="utf-8")
        self._cache[name] = adapter
        self._cached(name)

    def _cached(self, name: str) -> UserAdapter:
        """Return the adapter as the one used last; drop those beyond the cache's size."""
        self._cache.move_to_end(name)
        while len(self._cache) > self.in_memory:
            self._cache.popitem(last=False)
        return self._cache[name]


def checked_name(name: str) -> str:
    """Return the name if it can be a folder's; ValueError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", name):
        raise ValueError(
            f"user '{name}': expected 1 to 64 letters, digits or _ . @ -, the first no . @ or -"
        )
    return name


def read_adapter(folder: Path) -> UserAdapter:
    """Return the adapter in a folder of PEFT's form."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return UserAdapter(config, load_file(str(folder / WEIGHTS)))
