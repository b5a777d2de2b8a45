"""What the launching commands of one job say to each other: lines of JSON over a connection.

Every member says that it is alive every other second. A connection that closes, or on which nothing
was heard for SILENCE_S, is a host that is gone: a torn cable closes nothing, and torch would wait
half an hour for it.
"""

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.placement import Place

BEAT_S = 2.0
SILENCE_S = 15.0
JOIN_S = 600.0  # for other hosts to be started, by hand perhaps
PATIENCE_S = 5.0  # until it is said who is missing
ASK_AGAIN_S = 0.5

Message = Mapping[str, Any]


class Line:
    """A connection to another member: what it said, in order, and whether it still is there."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.fault = ""  # why there is nobody at the other end any more
        self._sending = threading.Lock()
        self._ends = threading.Event()
        connection.settimeout(SILENCE_S)
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()

    @property
    def own_address(self) -> str:
        """The address of this machine's end."""
        return str(self.connection.getsockname()[0])

    def send(self, message: Message) -> None:
        """Say it; that nobody is there shows in `fault`."""
        with self._sending:
            try:
                self.connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError as error:
                self.fault = self.fault or _why(error)

    def take(self, wait_s: float = 0.0) -> Message | None:
        """The next thing it said, or None."""
        with contextlib.suppress(queue.Empty):
            return self.inbox.get(timeout=wait_s) if wait_s else self.inbox.get_nowait()
        return None

    def close(self) -> None:
        """Say nothing more."""
        self._ends.set()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def _read(self) -> None:
        rest = b""
        while not self.fault:
            try:
                read = self.connection.recv(65536)
            except OSError as error:
                self.fault = self.fault or _why(error)
                return
            if not read:
                self.fault = self.fault or "it has ended"
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                self._hear(line)

    def _hear(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            self.fault = "it speaks another language"
            return
        if isinstance(message, dict) and message:  # an empty one is a sign of life
            self.inbox.put(message)

    def _beat(self) -> None:
        while not self.fault and not self._ends.wait(BEAT_S):
            self.send({})


def joined(place: Place, token: str, wait_s: float = JOIN_S) -> Line:
    """A line to the first member, once it listens; ValueError where it does not, or refuses."""
    ends = time.monotonic() + wait_s
    while True:
        try:
            connection = socket.create_connection((place.leader, place.port), timeout=SILENCE_S)
            break
        except OSError as error:
            if time.monotonic() > ends:
                raise ValueError(
                    f"{place.leader}:{place.port} did not answer for {wait_s:.0f} s ({error}); "
                    "expected the same command to run on the first host"
                ) from None
            time.sleep(ASK_AGAIN_S)
    line = Line(connection)
    line.send({"member": place.member, "host": place.host, "token": token})
    answer = line.take(SILENCE_S)
    if answer is None or "refused" in answer:
        line.close()
        why = "it said nothing" if answer is None else answer["refused"]
        raise ValueError(f"{place.leader}:{place.port} took no part in this job: {why}")
    return line


class Listener:
    """Where the first member waits for the others; `lines` are those that came, by member."""

    def __init__(self, place: Place, token: str) -> None:
        self.place, self.token = place, token
        self.lines: dict[int, Line] = {}
        self.hosts: dict[int, str] = {}
        self.door = socket.socket()
        self.door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.door.bind(("", place.port))
        except OSError:
            raise ValueError(
                f"port {place.port} is taken on {place.host}; expected it free, or another one in "
                "MASTER_PORT"
            ) from None
        self.door.listen(place.members)
        threading.Thread(target=self._welcome, daemon=True).start()

    def wait_for_all(self, say: Callable[[list[int]], None], wait_s: float = JOIN_S) -> None:
        """Until every member is there; `say` who is missing. ValueError where one never comes."""
        begun, told = time.monotonic(), False
        while absent := [k for k in range(1, self.place.members) if k not in self.lines]:
            waited_s = time.monotonic() - begun
            if waited_s > wait_s:
                raise ValueError(f"members {absent} did not come within {wait_s:.0f} s")
            if waited_s > PATIENCE_S and not told:
                say(absent)
                told = True
            time.sleep(0.1)

    def close(self) -> None:
        """Welcome nobody any more, and end all lines."""
        with contextlib.suppress(OSError):
            self.door.shutdown(socket.SHUT_RDWR)  # wakes who waits at it
        self.door.close()
        for line in self.lines.values():
            line.close()

    def _welcome(self) -> None:
        while True:
            try:
                connection, _ = self.door.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        line = Line(connection)
        said = line.take(SILENCE_S) or {}
        member = int(said.get("member", 0))
        if said.get("token") != self.token or not 0 < member < self.place.members:
            line.send({"refused": "it runs another config, hosts file or sharding"})
        elif member in self.lines:
            line.send({"refused": f"member {member} has come already"})
        else:
            self.hosts[member] = str(said["host"])
            line.send({"welcome": member})
            self.lines[member] = line


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no sign of life for {SILENCE_S:.0f} s"
    return "it has ended"
