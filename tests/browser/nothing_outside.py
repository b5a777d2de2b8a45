"""A watch over a process: it writes down, and refuses, every call to another machine."""

import sys
from pathlib import Path

HERE = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", None)


class OutsideError(OSError):
    """Something asked for another machine."""


def watch(log: Path) -> None:
    """From now on, sockets that leave this machine fail, and a line in `log` names the address."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        match event, arguments:
            case ("socket.connect" | "socket.sendto", (_, (address, *_))):
                host: object = address
            case "socket.getaddrinfo" | "socket.gethostbyname", (address, *_):
                host = address.decode() if isinstance(address, bytes) else address
            case _:
                return
        if host not in HERE:
            with log.open("a", encoding="utf-8") as out:
                out.write(f"{event} {host}\n")
            raise OutsideError(f"{event} {host}")

    sys.addaudithook(hook)
