"""Parses the lines of an import in a second process: one core parses while another inserts rows."""

import marshal
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

from caseload_server.store.portability.import_lines import ImportRefused
from caseload_server.store.portability.import_parser import Batch, batches

_SIZE: Final = struct.Struct("=Q")
"""Precedes each message on the pipe: its size in bytes."""


@contextmanager
def read_batches(source: BinaryIO, schema: str) -> Iterator[Iterator[Batch]]:
    """Yields the batches of import_parser.batches. The process ends with the with block.

    Args: source, a real file; schema, the newest migration of the empty store.
    """
    # -P: a folder named caseload_server in the working directory must not be imported instead of this package.
    command = [sys.executable, "-P", "-m", __name__, schema]
    # Only this process handles the signals of the terminal. The parser inherits the mask, and ends with this process.
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
    try:
        with subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE) as process:  # noqa: S603 - this module
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
                yield _receive(process.stdout)  # type: ignore[arg-type]  # it is a pipe, as requested
            finally:
                process.kill()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _receive(pipe: BinaryIO) -> Iterator[Batch]:
    """Yields batches from the pipe. Raises ImportRefused, and OSError if the process was killed."""
    while True:
        [size] = _SIZE.unpack(_read(pipe, _SIZE.size))
        message = marshal.loads(_read(pipe, size))  # noqa: S302 - this module sent it
        if isinstance(message, str):
            raise ImportRefused(message)
        if message is None:
            return
        yield Batch(*message)


def _read(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise OSError
    return data


def main() -> None:
    """Parses standard input. Sends each batch, then None, or the text of a refusal."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends this process silently when the reader has ended
    threading.Thread(target=_exit_with_reader, daemon=True).start()
    try:
        for batch in batches(sys.stdin.buffer, sys.argv[1]):
            _send(tuple(batch))
        _send(None)
    except ImportRefused as error:
        _send(str(error))


def _exit_with_reader() -> None:
    """Ends this process when the pipe has no reader left, even while it waits for input."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    poll.poll()
    os._exit(1)


def _send(message: Any) -> None:
    data = marshal.dumps(message, 2)  # later versions look for equal values, which takes longer
    sys.stdout.buffer.write(_SIZE.pack(len(data)) + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
