"""Why a job of several ranks stopped: which rank failed on which host, and what the cause was.

When one rank dies the others lose it, and fail as well. What is told is the cause: a kill before
bad input, bad input before an error of ours, a lost connection only where nothing else is known.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["killed", "input", "error", "gone", "lost contact"]
FIRST: tuple[Kind, ...] = ("killed", "input", "error", "gone", "lost contact")
CONTACT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "imed out",
           "onnection refused", "connectFullMesh", "NCCL", "Socket", "recvValue",
           "remote process", "store->")  # fmt: skip


class RankFailed(Exception):  # noqa: N818 - it is the ranks that failed, not this process
    """A rank or a host of the job is gone, and all others were stopped. `code` is to exit with."""

    def __init__(self, said: str, code: int) -> None:
        super().__init__(said)
        self.code = code


@dataclass(frozen=True, slots=True)
class Failure:
    """One rank's end. `rank` is None where a whole host is meant; `trace` only of an error."""

    rank: int | None
    host: str
    kind: Kind
    said: str
    trace: str = ""

    def __str__(self) -> str:
        who = f"host {self.host}" if self.rank is None else f"rank {self.rank} on {self.host}"
        return f"{who} {self.said}"


def cause(failures: Sequence[Failure]) -> Failure:
    """The failure that the others follow from."""
    return min(failures, key=lambda failure: FIRST.index(failure.kind))


def of_exit(rank: int, host: str, code: int) -> Failure:
    """The failure of a process that ended with this code, saying nothing of its own."""
    if code >= 0:
        return Failure(rank, host, "error", f"ended with code {code}")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    why = f"signal {-code} ({name}{': out of memory?' if -code == signal.SIGKILL else ''})"
    return Failure(rank, host, "killed", f"was killed by {why}")


def of_error(rank: int, host: str, error: BaseException, trace: str) -> Failure:
    """The failure of a process in which this was raised, and which is not the user's to mend."""
    said = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in CONTACT):
        return Failure(rank, host, "lost contact", f"lost contact with another rank ({said})")
    return Failure(rank, host, "error", f"failed: {type(error).__name__}: {said}", trace)


def stopped(stage: str, failures: Sequence[Failure], trouble: str = "") -> RankFailed | ValueError:
    """What to raise: bad input as a ValueError, as where one process reads it, else RankFailed."""
    found = cause(failures)
    if found.kind == "input":
        return ValueError(found.said)
    code = 1 if found.kind == "error" else 4
    return RankFailed(f"{stage}: {found}; all ranks were stopped{trouble}", code)
