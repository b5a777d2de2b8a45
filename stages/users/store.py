"""A folder of users' sets beside their base: a folder each, the latest used ones kept in memory.

STORE/base.json                        the base's name and hash; sets of another base are refused
STORE/NAME/base.json                   a copy of it; a base around the store is named from the store
STORE/NAME/adapter_config.json         one user's set, in PEFT's form: PeftModel loads it alone
STORE/NAME/adapter_model.safetensors
"""

import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file

from reward_models.base_names import base_name
from stages.users.adapters import UserSet

BASE, CONFIG, WEIGHTS = "base.json", "adapter_config.json", "adapter_model.safetensors"
IN_MEMORY = 256  # sets; a LoRA of rank 8 on a 135M model is about 2 MB


class UserStore:
    """Users' sets by name. Not for two processes that write the same user."""

    def __init__(
        self, folder: Path, *, base_name: str, base_hash: str, in_memory: int = IN_MEMORY
    ) -> None:
        """Open or begin a store; ValueError where it belongs to another base."""
        self.folder, self.in_memory = folder, in_memory
        self.base_name, self.base_hash = base_name, base_hash
        self._kept: OrderedDict[str, UserSet] = OrderedDict()
        if (folder / BASE).is_file():
            found = json.loads((folder / BASE).read_text(encoding="utf-8"))
            if found["weights_sha256"] != base_hash:
                raise ValueError(
                    f"{folder} holds sets of base {found['weights_sha256'][:8]}… "
                    f"({found['name']}), {base_name} is {base_hash[:8]}…: a set only fits the "
                    "weights it was trained on"
                )

    def names(self) -> list[str]:
        """Every user with a set, in order."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{CONFIG}"))

    def __contains__(self, name: str) -> bool:
        return (self.folder / checked_name(name) / CONFIG).is_file()

    def get(self, name: str) -> UserSet:
        """A user's set, from memory or disk; ValueError naming some who are there if it is not."""
        checked_name(name)
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        place = self.folder / name
        if not (place / CONFIG).is_file():
            there = self.names()
            some = ", ".join(there[:5]) + (" …" if len(there) > 5 else "")
            raise ValueError(f"{self.folder}: no set of user '{name}'; there are: {some or 'none'}")
        found = read_set(place)
        self._keep(name, found)
        return found

    def get_all(self, names: Iterable[str]) -> list[UserSet]:
        """The sets of several users, in order."""
        return [self.get(name) for name in names]

    def put(self, name: str, one: UserSet) -> None:
        """Write a user's set aside and rename it; what the user had before is replaced."""
        place = self.folder / checked_name(name)
        aside = self.folder / f".{name}.part"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        note = {"name": base_name(self.base_name, self.folder)}
        base = json.dumps({**note, "weights_sha256": self.base_hash}, indent=2) + "\n"
        (self.folder / BASE).write_text(base, encoding="utf-8")
        (aside / BASE).write_text(base, encoding="utf-8")
        config = {
            **one.config,
            "base_model_name_or_path": base_name(self.base_name, place),
        }
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        save_file({key: value.contiguous() for key, value in one.tensors.items()},
                  str(aside / WEIGHTS))  # fmt: skip
        (aside / CONFIG).write_text(text, encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        aside.rename(place)
        self._keep(name, one)

    def _keep(self, name: str, one: UserSet) -> None:
        self._kept[name] = one
        self._kept.move_to_end(name)
        while len(self._kept) > self.in_memory:
            self._kept.popitem(last=False)


def checked_name(name: str) -> str:
    """The name if it can be a folder's; ValueError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", name):
        raise ValueError(
            f"user '{name}': expected 1 to 64 letters, digits or _ . @ -, the first no . @ or -"
        )
    return name


def read_set(folder: Path) -> UserSet:
    """The set in a folder of PEFT's form."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return UserSet(config, load_file(str(folder / WEIGHTS)))
