"""Reads and checks the lines of an import in a process of its own: one core reads while another adds rows."""

import marshal
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

from service.store.import_lines import Batch, ImportRefused, batches

_SIZE: Final = struct.Struct("=Q")


@contextmanager
def reading(source: BinaryIO, schema: str) -> Iterator[Iterator[Batch]]:
    """As import_lines.batches, of a real file; the process ends with the with block."""
    # -P: a folder named service where the command is run is not this one.
    command = [sys.executable, "-P", "-m", __name__, schema]
    # Ctrl-C is for this process: the other one, which inherits the mask, ends with it and says nothing.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE)  # noqa: S603 - this module
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with process:
        try:
            yield _received(process.stdout)  # type: ignore[arg-type]  # a pipe, as asked for
        finally:
            process.kill()


def _received(pipe: BinaryIO) -> Iterator[Batch]:
    """Raises ImportRefused, and OSError where the process was ended."""
    while head := pipe.read(_SIZE.size):
        item = marshal.loads(pipe.read(*_SIZE.unpack(head)))  # noqa: S302 - what this module sent
        if isinstance(item, str):
            raise ImportRefused(item)
        if item is None:
            return
        yield Batch(*item)
    raise OSError


def main() -> None:
    """Sends each batch, then None, or the text of a refusal."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads has ended: so does this, without a word
    try:
        for batch in batches(sys.stdin.buffer, sys.argv[1]):
            _send(tuple(batch))
        _send(None)
    except ImportRefused as error:
        _send(str(error))


def _send(item: Any) -> None:
    data = marshal.dumps(item, 2)  # later versions look for equal values, which takes longer
    sys.stdout.buffer.write(_SIZE.pack(len(data)) + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
