"""Failures that are not a bug: the one line that says what the user can do about each.

Exit codes: 0 done, 1 a bug (with its traceback), 2 bad input or no room to write, 3 people have
to do something first, 4 a rank of a spread run was lost (the same command resumes), 130
interrupted by Ctrl-C, 143 by SIGTERM.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the folder is read-only",
    errno.EACCES: "no permission to write or read here",
    errno.EPERM: "no permission to write or read here",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}
INPUT_ERROR, LOST_CONTACT = 2, 4
FULL_WORDS = ("No space left on device", "StorageFull", "os error 28")
ALMOST_NOTHING_BYTES = 1 << 20


class PeopleNeeded(Exception):  # noqa: N818 - it is no error
    """The run cannot go on until people have ranked; the message says what they do."""


class RankFailed(Exception):  # noqa: N818 - a rank failed, not this process
    """A rank is gone and all others were stopped. `code` is the command's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def one_line(error: BaseException, out: Path | None) -> str | None:
    """Return the line for a failure that is not our bug, or None for one that is.

    Libraries wrap a full disk in errors of their own, so the chain of causes is searched, and the
    free space where the command writes (`out`) is looked at.
    """
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return " ".join(str(error).split())
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in ROOM:
            path = cause.filename or out or "output"
            return f"{path}: {ROOM[cause.errno]}"
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
