"""The labeling room beside Potato and Label Studio:   python -m tests.benchmarks.rooms PEERS

Each peer is installed into an environment of its own below PEERS (ten minutes and 1.5 GB the first
time), started there with the same tasks (seven outputs of 200 words, two of which differ in one
character), and opened in Chromium. Prints a table for docs/labeling.md. Needs the tests' packages.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer
from playwright.sync_api import Browser, Page, sync_playwright

from labeling_ui.store.store import Store
from reward_models.records import RankingTask, Response
from tests.browser.room_server import RoomServer
from tests.conftest import CHROMIUM, FLAGS

POTATO, LABEL_STUDIO = "potato-annotation==2.12.1", "label-studio==1.23.0"
PROMPT = "Tell of the lighthouse."
NUM_TASKS, START_S, SETTLE_MS = 5, 600.0, 15_000
TOKEN = "0123456789abcdef0123456789abcdef01234567"
WORDS = "the keeper of light wrote down wind fog ships storms and what he had seen from his tower"
# Whole lines of each output on the screen, most first; and whether the differing words both are.
SEEN = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const boxes = (fill) => { const range = document.createRange(); fill(range); return [...range.getClientRects()]; };
  const isSeen = (box, parent) => box.top >= 0 && box.bottom <= innerHeight && box.width > 0
    && parent.contains(document.elementFromPoint(box.left + 2, (box.top + box.bottom) / 2));
  const odd = new Set();
  let lines = 0;
  for (let node; (node = walker.nextNode());) {
    const parent = node.parentElement, at = node.data.search(/storm[yi]/);
    if (parent.closest("script, style, textarea")) continue;
    const block = parent.closest("p") || parent;
    if (/^Output \\d of seven/.test(block.textContent)) {
      const seen = boxes((range) => range.selectNodeContents(block)).filter((box) => isSeen(box, block));
      const bottoms = seen.map((box) => box.bottom).sort((one, other) => one - other);
      lines = Math.max(lines, bottoms.filter((bottom, i) => !(bottom - bottoms[i - 1] < 10)).length);
    }
    const word = (range) => { range.setStart(node, at); range.setEnd(node, at + 6); };
    if (at >= 0 && boxes(word).some((box) => isSeen(box, parent))) odd.add(node.data.slice(at, at + 6));
  }
  const page = document.documentElement;
  return { lines, both: odd.size === 2, height: page.scrollHeight, width: page.scrollWidth };
}"""  # noqa: E501


@dataclass(frozen=True)
class Tool:
    """A program for labeling: how it is started in a folder, and how a task is reached in it."""

    name: str
    start: Callable[[Path, int], subprocess.Popen[bytes]]
    enter: Callable[[Page, str], None]
    compare: Callable[[Page], None]  # the way to two outputs at once, where there is one


def outputs() -> list[str]:
    """Return seven texts of 200 words; the third and the sixth differ in one character."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS.split(), k=195)) for _ in range(7)]
    texts[5] = texts[2]
    for i, word in ((2, "stormy-light"), (5, "stormi-light")):
        texts[i] = " ".join([*texts[i].split()[:150], word, *texts[i].split()[150:]])
    return [f"Output {i} of seven. {text}" for i, text in enumerate(texts)]


def main(peers: Path) -> None:
    """Measure all three, and print the table."""
    peers.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, str]] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        for tool in (ours(), potato(peers), label_studio(peers)):
            with tempfile.TemporaryDirectory() as folder:
                port = _free_port()
                process = tool.start(Path(folder), port)
                try:
                    rows[tool.name] = _measured(tool, browser, f"http://127.0.0.1:{port}")
                    print(tool.name, rows[tool.name], file=sys.stderr)
                finally:
                    process.kill()
                    process.wait()
        browser.close()
    print("| |", " | ".join(rows), "|\n|---|---|---|---|")
    for quantity in next(iter(rows.values())):
        print(f"| {quantity} |", " | ".join(row[quantity] for row in rows.values()), "|")


def _measured(tool: Tool, browser: Browser, address: str) -> dict[str, str]:
    _wait(address)
    page = browser.new_page(viewport={"width": 1280, "height": 720}, locale="en-US")
    page.set_default_timeout(90_000)
    tool.enter(page, address)
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname or ""))
    client, sizes = page.context.new_cdp_session(page), []
    client.send("Network.enable")
    client.send("Network.setCacheDisabled", {"cacheDisabled": True})
    client.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.reload(wait_until="commit")  # what it asks of hosts outside may never come
    page.wait_for_timeout(SETTLE_MS)
    kilobytes = sum(sizes) / 1000
    tool.compare(page)
    wide = page.evaluate(SEEN)
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(1500)
    narrow = page.evaluate(SEEN)
    page.close()
    outside = sorted(hosts - {"127.0.0.1", ""})
    return {
        "first load": f"{kilobytes:,.0f} kB",
        "hosts outside that the browser asks": ", ".join(outside) or "none",
        "lines of one output on the screen, 1280 by 720": str(wide["lines"]),
        "two that differ in one character, both on the screen": "yes" if wide["both"] else "no",
        "phone of 390 px: laid out, height": f"{narrow['width']:,} px, {narrow['height']:,} px",
    }


def ours() -> Tool:
    """The room of this project."""

    def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
        room = RoomServer(folder)
        room.port, room.address = port, f"http://127.0.0.1:{port}"
        store = Store(room.where)
        texts = [Response(str(i), text, "m", {}) for i, text in enumerate(outputs())]
        store.add_tasks([RankingTask(f"{n}", PROMPT, tuple(texts)) for n in range(NUM_TASKS)])
        store.close()
        room.start()
        assert room.process is not None
        return room.process

    def enter(page: Page, address: str) -> None:
        page.goto(address)
        page.fill("#name", "ann")
        page.click("button")
        page.wait_for_selector(".room .tab")

    def compare(page: Page) -> None:
        for _ in range(7):
            page.keyboard.press("4")
            page.keyboard.press("Enter")
        texts = page.locator(".card .text").all_text_contents()
        first, second = ("ABCDEFG"[i] for i, text in enumerate(texts) if "-light" in text)
        page.keyboard.press(first.lower())
        page.keyboard.press(f"Shift+{second}")
        page.wait_for_selector("mark")

    return Tool("this room", start, enter, compare)


def potato(peers: Path) -> Tool:
    """Potato, with its scheme for ranking."""
    program = _installed(peers / "potato", POTATO) / "potato"
    scheme = {"annotation_type": "ranking", "name": "order", "description": "Order, best first"}

    def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
        config = {
            **{"annotation_task_name": "Ranking", "task_dir": ".", "port": port},
            **{"output_annotation_dir": "out", "output_annotation_format": "jsonl"},
            **{"data_files": ["tasks.jsonl"], "require_password": False, "site_dir": "default"},
            "item_properties": {"id_key": "id", "text_key": "text"},
            "user_config": {"allow_all_users": True, "users": []},
            "annotation_schemes": [{**scheme, "labels": list("ABCDEFG")}],
        }
        texts = [f"<h3>{x}</h3><p>{text}</p>" for x, text in zip("ABCDEFG", outputs(), strict=True)]
        rows = [{"id": f"{n}", "text": f"<p>{PROMPT}</p>{''.join(texts)}"} for n in range(5)]
        (folder / "config.yaml").write_text(json.dumps(config))
        (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
        command = [str(program), "start", "config.yaml", "-p", str(port)]
        return _process(command, folder)

    def enter(page: Page, address: str) -> None:
        page.goto(address)
        page.fill("#login-email", "ann")
        page.press("#login-email", "Enter")
        page.wait_for_selector("#order")

    return Tool("Potato 2.12.1", start, enter, lambda _: None)


def label_studio(peers: Path) -> Tool:
    """Label Studio, with its Ranker over a List."""
    program = _installed(peers / "label-studio", LABEL_STUDIO) / "label-studio"
    config = (
        '<View><Text name="prompt" value="$prompt"/><List name="outputs" value="$outputs"/>'
        '<Ranker name="order" toName="outputs"/></View>'
    )
    items = [{"id": str(i), "title": "", "body": text} for i, text in enumerate(outputs())]

    def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
        account = ["--username", "ann@example.org", "--password", "correct-horse"]
        account += ["--user-token", TOKEN, "--enable-legacy-api-token"]
        command = [str(program), "start", "--no-browser", "--data-dir", str(folder), *account]
        return _process([*command, "-p", str(port)], folder)

    def ask(address: str, path: str, content: object) -> Any:
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
        body = json.dumps(content).encode()
        request = urllib.request.Request(f"{address}/api/{path}", body, headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def enter(page: Page, address: str) -> None:
        project = ask(address, "projects", {"title": "Ranking", "label_config": config})["id"]
        rows = [{"data": {"prompt": PROMPT, "outputs": items}} for _ in range(NUM_TASKS)]
        ask(address, f"projects/{project}/import", rows)
        page.goto(f"{address}/user/login/", wait_until="domcontentloaded")
        page.fill("[name=email]", "ann@example.org")
        page.fill("[name=password]", "correct-horse")
        page.press("[name=password]", "Enter")
        page.wait_for_function("!location.pathname.includes('login')")
        page.goto(f"{address}/projects/{project}/data?labeling=1", wait_until="commit")
        page.wait_for_selector("text=of seven")

    return Tool("Label Studio 1.23", start, enter, lambda _: None)


def _installed(folder: Path, package: str) -> Path:
    """Return the programs of an environment with that package, made if it is not there."""
    programs = folder / "bin"
    if not programs.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(programs / "pip"), "install", "--quiet", package], check=True)
    return programs


def _process(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(address: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise TimeoutError(address)


if __name__ == "__main__":
    typer.run(main)
