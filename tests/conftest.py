"""The ground of every test: one thread, no network, and skips that say why."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

torch.set_num_threads(1)

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason; and files that need a browser come last,
    because Playwright keeps an event loop running in this thread from its first test on, where
    `asyncio.run` refuses to work.
    """
    driven = {item.path for item in items if "browser" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path in driven)
    missing = {}
    if shutil.which("chromium") is None:
        missing["browser"] = "Debian's chromium is not installed (apt-get install chromium)"
    if not torch.cuda.is_available():
        missing["gpu"] = "no accelerator on this machine"
    if not (os.environ.get("RLHF_VLLM") or shutil.which("vllm")):
        missing["vllm"] = "there is no vLLM (RLHF_VLLM=/path/to/vllm, see docs/ppo.md)"
    for item in items:
        for marker, reason in missing.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for every browser test; they are skipped, saying so, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM} (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS, timeout=60_000)
        yield started
        started.close()
