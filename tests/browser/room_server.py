"""The labeling room in a process of its own, which can be killed and started again."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from tests.browser.nothing_outside import watch
watch(Path(sys.argv[3]))
from labeling_ui.app import RoomOptions, serve
from labeling_ui.forms import load_form
from labeling_ui.tasks.live import Live
from labeling_ui.store.store import Store
from reward_models.records import Response
def policy(prompt, number):
    return [Response(str(i), f"answer {i} to {prompt.prompt}", "policy", {}) for i in range(number)]
form = load_form(Path(sys.argv[4])) if len(sys.argv) > 4 else None
serve(Store(sys.argv[1]), RoomOptions(form=form, live=Live(policy)), port=int(sys.argv[2]))
"""
START_S = 90.0


class RoomServer:
    """A server on a free port over a store: a file in the folder, or the one that `where` names.

    It asks by `form`, a file, or by the default ones.
    """

    def __init__(
        self, folder: Path, where: str | Path | None = None, form: Path | None = None
    ) -> None:
        self.where = folder / "labels.sqlite" if where is None else where
        self.form = form
        self.log = folder / "server.log"
        self.outside = folder / "outside.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        root = Path(__file__).parents[2]
        arguments = [str(self.where), str(self.port), str(self.outside)]
        arguments += [] if self.form is None else [str(self.form)]
        command = [sys.executable, "-c", SCRIPT, *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.address}/login", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"the room did not start:\n{self.log.read_text()}")

    def outside_hosts(self) -> list[str]:
        """Return the other machines that it has contacted so far."""
        return self.outside.read_text().splitlines() if self.outside.exists() else []

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def cpu_s(self) -> float:
        """The processor time it has used, in seconds (Linux)."""
        assert self.process is not None
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
