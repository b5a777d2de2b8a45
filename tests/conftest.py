"""What every test relies on: one thread, no network, and skips that say why."""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason."""
    missing = {}
    if shutil.which("chromium") is None:
        missing["browser"] = "Debian's chromium is not installed (apt-get install chromium)"
    if not torch.cuda.is_available():
        missing["gpu"] = "no accelerator on this machine"
    for item in items:
        for marker, reason in missing.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
