"""How a command ends: the path of what it made, one line about a mistake, or a traceback."""

import errno
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import typer

from pipeline.rank_failure import RankFailed

ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the folder is read-only",
    errno.EACCES: "no permission to write or read here",
    errno.EPERM: "no permission to write or read here",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}
FULL_WORDS = ("No space left on device", "StorageFull", "os error 28")
ALMOST_NOTHING_BYTES = 1 << 20


class PeopleNeeded(Exception):  # noqa: N818 - it is no error
    """The run cannot go on until people have ranked; the message says what they do."""


def one_line(error: BaseException, out: Path | None) -> str | None:
    """The line for a failure that is not our bug, or None for one that is.

    Libraries wrap a full disk in errors of their own, so the chain of causes is searched, and the
    free space where the command writes (`out`) is looked at.
    """
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return " ".join(str(error).split())
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in ROOM:
            place = cause.filename or out or "output"
            return f"{place}: {ROOM[cause.errno]}"
        if any(word in str(cause) for word in FULL_WORDS):
            return f"{out or 'output'}: {ROOM[errno.ENOSPC]}"
    if isinstance(error, OSError | RuntimeError) and out is not None and _is_full(out):
        return f"{out}: {ROOM[errno.ENOSPC]}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    here: BaseException | None = error
    while here is not None:
        yield here
        here = here.__cause__ or here.__context__


def _is_full(out: Path) -> bool:
    there = next((path for path in (out, *out.absolute().parents) if path.exists()), Path("/"))
    room = os.statvfs(there)
    return room.f_bavail * room.f_frsize < ALMOST_NOTHING_BYTES


QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class _Terminated(BaseException):
    """SIGTERM arrived; unlike an Exception nothing on the way catches it."""


def guarded(command: Callable[[], Path | None], out: Path | None) -> int:
    """Run a command; print the artefact's path as the last line of stdout; return the exit code."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        made = command()
    except (KeyboardInterrupt, _Terminated) as stop:
        print(
            f"\nInterrupted; nothing that was finished is lost. To go on:  {again()}",
            file=sys.stderr,
        )
        return 128 + (signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
    except PeopleNeeded as waiting:
        print(f"{waiting}.\nWhen they have, go on with:  {again()}", file=sys.stderr)
        return 3
    except RankFailed as failed:
        print(f"rlhf: {failed}. To go on:  {again()}", file=sys.stderr)
        return failed.code
    except Exception as error:  # the border: what is not the user's to mend keeps its traceback
        line = one_line(error, out)
        if line is None:
            traceback.print_exc()
            return 1
        print(f"rlhf: {line}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)
    if made is not None:
        print(made, flush=True)
    return 0


def run_verb(command: Callable[[], Path | None], out: Path | None) -> None:
    """Run a verb's command, guarded; a failure ends the process with the exit code it deserves."""
    code = guarded(command, out)
    if code:
        raise typer.Exit(code)


def run_module(command: Callable[..., None]) -> None:
    """A module's own command: bad input is one line on stderr and exit code 2, as with `rlhf`."""
    try:
        typer.run(command)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def again() -> str:
    """The command line of this process, as one would type it."""
    return shlex.join(["rlhf", *sys.argv[1:]])


def _terminate(_: int, __: FrameType | None) -> None:
    raise _Terminated
