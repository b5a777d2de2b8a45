"""How a command ends: the path of what it made, one line about a mistake, or a traceback."""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import typer

from pipeline.runs.failures import PeopleNeeded, RankFailed, one_line

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
