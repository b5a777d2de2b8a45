"""The end of a command: the path of its artefact, one line about a mistake, or a traceback."""

import functools
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import ParamSpec

import typer

from pipeline.runs.failures import PeopleNeeded, RankFailed, one_line

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# bitsandbytes warns, as peft imports it, of kernels that it works without.
QUIET_LOGGERS = ("bitsandbytes.backends.cpu.ops",)
P = ParamSpec("P")


class _Terminated(BaseException):
    """SIGTERM arrived; unlike an Exception nothing on the way catches it."""


def verb(function: Callable[P, Path | None]) -> Callable[P, None]:
    """Make a command of a function that returns its artefact; a failure sets the exit code."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        out = kwargs.get("out")
        code = guarded(lambda: function(*args, **kwargs), out if isinstance(out, Path) else None)
        if code:
            raise typer.Exit(code)

    return command


def guarded(command: Callable[[], Path | None], out: Path | None) -> int:
    """Run a command; print the artefact's path as the last line of stdout; return the exit code."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for logger in QUIET_LOGGERS:
        logging.getLogger(logger).setLevel(logging.ERROR)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        artefact = command()
    except (KeyboardInterrupt, _Terminated) as stop:
        print(
            f"\nInterrupted; nothing that was finished is lost. To resume:  {command_line()}",
            file=sys.stderr,
        )
        return 128 + (signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
    except PeopleNeeded as waiting:
        print(f"{waiting}.\nWhen they have, resume with:  {command_line()}", file=sys.stderr)
        return 3
    except RankFailed as failed:
        print(f"rlhf: {failed}. To resume:  {command_line()}", file=sys.stderr)
        return failed.code
    except Exception as error:  # the border: our own bugs keep their traceback
        line = one_line(error, out)
        if line is None:
            traceback.print_exc()
            return 1
        print(f"rlhf: {line}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)
    if artefact is not None:
        print(artefact, flush=True)
    return 0


def command_line() -> str:
    """Return the command line of this process, as one would type it."""
    return shlex.join(["rlhf", *sys.argv[1:]])


def _terminate(_: int, __: FrameType | None) -> None:
    raise _Terminated
