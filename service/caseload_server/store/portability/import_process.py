"""Reads and checks the lines of an import in a process of its own: one core reads while another adds rows."""

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

from caseload_server.store.portability.import_parser import Batch, ImportRefused, batches

_SIZE: Final = struct.Struct("=Q")


@contextmanager
def reading(source: BinaryIO, schema: str) -> Iterator[Iterator[Batch]]:
    """As import_lines.batches, of a real file; the process ends with the with block."""
    # -P: a folder named service where the command is run is not this one.
    command = [sys.executable, "-P", "-m", __name__, schema]
    # Ctrl-C is for this process: the other one, which inherits the mask, ends with it and says nothing.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE) as process:  # noqa: S603 - this module
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                yield _received(process.stdout)  # type: ignore[arg-type]  # a pipe, as asked for
            finally:
                process.kill()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _received(pipe: BinaryIO) -> Iterator[Batch]:
    """Raises ImportRefused, and OSError where the process was ended."""
    while True:
        [size] = _SIZE.unpack(_read(pipe, _SIZE.size))
        item = marshal.loads(_read(pipe, size))  # noqa: S302 - what this module sent
        if isinstance(item, str):
            raise ImportRefused(item)
        if item is None:
            return
        yield Batch(*item)


def _read(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise OSError
    return data


def main() -> None:
    """Sends each batch, then None, or the text of a refusal."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads has ended: so does this, without a word
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    try:
        for batch in batches(sys.stdin.buffer, sys.argv[1]):
            _send(tuple(batch))
        _send(None)
    except ImportRefused as error:
        _send(str(error))


def _end_with_the_other() -> None:
    """Ends this process when the pipe has no reader any more, also where it waits for lines that do not come."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    poll.poll()
    os._exit(1)


def _send(item: Any) -> None:
    data = marshal.dumps(item, 2)  # later versions look for equal values, which takes longer
    sys.stdout.buffer.write(_SIZE.pack(len(data)) + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
