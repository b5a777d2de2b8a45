"""The commands of the other hosts: started over ssh where that works, else told, to be typed."""

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.hosts import Host

OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")  # ask nobody for a password


@contextmanager
def started_over_ssh(hosts: Sequence[Host]) -> Iterator[None]:
    """This command on every host but the first, in the same folder, by the same Python.

    A remote command ends by itself when the first host ends. One that cannot be started is told
    later, when the first host waits for it.
    """
    started = []
    for number, host in enumerate(hosts[1:], 1):
        command = ["ssh", *OPTIONS, host.name, _there(number)]
        try:
            started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr))
        except FileNotFoundError:  # no ssh here
            break
    try:
        yield
    finally:
        for process in started:
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()


def to_be_started(host: Host, number: int) -> str:
    """What somebody has to type on a host."""
    return f"waiting for {host.name}. Where ssh does not start it, type there:  {_there(number)}"


def _there(number: int) -> str:
    mine = [sys.executable, "-m", "pipeline.cli.app", *sys.argv[1:], "--host-rank", str(number)]
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(mine)}"
