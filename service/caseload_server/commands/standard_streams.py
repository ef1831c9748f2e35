"""The standard streams of a command: closed ones, and lines that cannot be written."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

from caseload_server.config import SettingError
from caseload_server.write_faults import with_fault, write_fault

_REPLACEMENTS: Final = (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))
"""How a closed stream is opened, by descriptor. Results must not get lost, so writing to standard output fails."""


def open_closed_streams() -> None:
    """Opens each standard stream that is closed on /dev/null.

    Otherwise the next file or connection would take its number, and text for the stream would be written there.
    """
    for descriptor, (name, mode, flags) in enumerate(_REPLACEMENTS):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, flags), True)
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 - it stays open


def print_line(text: str, *, done: str = "") -> None:
    """Prints a result on standard output. Raises SettingError.

    Args: done, what the error says of the command's work, if that is complete before its result is printed.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        fault = write_fault(Path("/dev/stdout"), error)
        _discard(sys.stdout)
        text = with_fault("cannot be written", fault)
        raise SettingError("standard output", f"{text}; {done}" if done else text) from None


def print_notice(text: str) -> None:
    """Prints a line for people on standard error. One that cannot be written is lost."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(failed: TextIO) -> None:
    """Sends the text that is left in a stream, and all further text, to /dev/null.

    Otherwise Python would try to write it at the exit, complain and change the exit code (docs.python.org: "Note on
    SIGPIPE").
    """
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, failed.fileno())
        os.close(nowhere)
