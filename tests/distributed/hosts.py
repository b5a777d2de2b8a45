"""Two hosts for a test: network namespaces joined by a pair of virtual Ethernet devices."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Hosts:
    """Both by the names of their namespaces and their addresses."""

    names: tuple[str, str]
    addresses: tuple[str, str]

    def inside(self, number: int) -> list[str]:
        """What goes before a command to run it on a host."""
        return ["ip", "netns", "exec", self.names[number]]

    def file(self, folder: Path, slots: int = 1) -> Path:
        """The hosts file of both."""
        path = folder / "hosts.txt"
        path.write_text("".join(f"{address} slots={slots}\n" for address in self.addresses))
        return path

    def kill(self, number: int) -> None:
        """End everything on a host at once, as a power cut would."""
        for pid in self.processes(number):
            os.kill(pid, signal.SIGKILL)

    def processes(self, number: int) -> list[int]:
        """What runs on a host."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.names[number]], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in done.stdout.split()]

    def tear_the_cable(self) -> None:
        """From now on nothing that one host sends arrives at the other, and neither is told."""
        ip("-n", self.names[1], "link", "set", "eth-rlhf", "down")


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Made where this user may; else the test is skipped, saying so."""
    tag = f"{os.getpid() % 100000}"
    names = (f"rlhf-a-{tag}", f"rlhf-b-{tag}")
    if shutil.which("ip") is None:
        pytest.skip("ip is missing (apt-get install iproute2): no network namespaces for two hosts")
    if subprocess.run(
        ["ip", "netns", "add", names[0]], capture_output=True, check=False
    ).returncode:
        pytest.skip("this user may not make network namespaces, so there are no two hosts")
    try:
        ip("netns", "add", names[1])
        ends = [("eth-rlhf", "netns", name) for name in names]
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        addresses = ("10.77.31.1", "10.77.31.2")
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth-rlhf")
            ip("-n", name, "link", "set", "eth-rlhf", "up")
        hosts = Hosts(names, addresses)
        yield hosts
        for number in range(2):
            hosts.kill(number)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def ip(*arguments: str) -> None:
    """Run `ip`; CalledProcessError where it fails."""
    subprocess.run(["ip", *arguments], capture_output=True, check=True)
