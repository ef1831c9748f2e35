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
        sys.stdout = _nowhere()
        fault = write_fault(Path("/dev/stdout"), error)
        text = with_fault("cannot be written", fault)
        raise SettingError("standard output", f"{text}; {done}" if done else text) from None


def print_notice(text: str) -> None:
    """Prints a line for people on standard error. One that cannot be written is lost."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    """Returns a stream that replaces a failed one. The text left in that one would change the exit code."""
    return Path(os.devnull).open("w")
