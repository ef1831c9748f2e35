"""Files and pipes that log lines are written to. None of them can block the server without a limit."""

import os
import select
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Final, Protocol

_CHECK_INTERVAL_SECONDS: Final = 1.0
"""The log file's path is checked for a moved file at most this often."""
_SETTLE_SECONDS: Final = 0.05
"""How long a file that ends within a line must keep its size until the line counts as torn. Another process may be
within a write: a file grows in several steps then."""
WRITE_TIMEOUT_SECONDS: Final = 5.0
"""How long a write waits for a reader that does not read, or for a disk that does not respond."""


class LogSink(Protocol):
    """Writes whole lines, from any thread."""

    def write(self, line: str, /) -> Any:
        """Writes one line, including its newline. Raises OSError."""


class BoundedWriter:
    """Writes whole lines to a descriptor. A reader that has exited or does not read blocks the server
    for a limited time only. It writes each line to a file at once, which keeps the lines of several processes apart.

    It keeps no buffer to write later: data left in sys.stderr when Python exits would change the exit code.
    """

    def __init__(self, descriptor: int) -> None:
        """Assumes that the reader reads. Args: descriptor, open for writing."""
        self.descriptor = descriptor
        self._lock = threading.Lock()
        self._timeout_seconds = WRITE_TIMEOUT_SECONDS
        self._is_torn = False
        """Whether the last write of this process ended within a line."""
        self._may_be_torn = True
        """Whether the file may end within a line: after a failed write, or after one of another process."""
        self._limits_writes = not _is_kind(descriptor, stat.S_ISREG)
        """Whether a write takes at most what poll finds room for."""
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, text: str) -> None:
        """Writes the text. Raises OSError.

        When the descriptor accepts no data, it raises TimeoutError after WRITE_TIMEOUT_SECONDS. Later writes then fail
        immediately, until the descriptor accepts data again. After a part of a line, the next text begins a new line.
        """
        if not self._lock.acquire(timeout=self._timeout_seconds):
            # The thread with the lock blocks in write(2): a disk hangs, or another worker filled the pipe after poll
            # found room in it.
            self._timeout_seconds = 0.0
            raise TimeoutError
        try:
            data = text.encode(errors="backslashreplace")
            if self._may_be_torn and self._ends_within_line():
                data = b"\n" + data
            self._may_be_torn = True
            self._write(data)
            self._may_be_torn = False
            self._timeout_seconds = WRITE_TIMEOUT_SECONDS
        finally:
            self._lock.release()

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self._write_some(data) :]
            self._is_torn = bool(data)

    def _ends_within_line(self) -> bool:
        """Returns whether the file ends within a line, also of an earlier process, or of another one that shares it."""
        if not _is_kind(self.descriptor, stat.S_ISREG):
            return self._is_torn
        try:
            with Path(f"/proc/self/fd/{self.descriptor}").open("rb", buffering=0) as file:
                size = _size_if_torn(file)
                if size:
                    time.sleep(_SETTLE_SECONDS)
                return 0 < size == _size_if_torn(file)
        except OSError:  # it belongs to another user, or there is no /proc
            return self._is_torn

    def _write_some(self, data: bytes) -> int:
        """Returns the number of written bytes, at most those for which poll finds room in a pipe."""
        if not self._limits_writes:
            return os.write(self.descriptor, data)
        if not self._poll.poll(self._timeout_seconds * 1000):
            self._timeout_seconds = 0.0
            raise TimeoutError
        return os.write(self.descriptor, data[: select.PIPE_BUF])


class LogFile(BoundedWriter):
    """Appends lines to a file. When the file is moved away, it creates a new one at the same path within a second."""

    def __init__(self, path: Path) -> None:
        """Opens the file. Raises OSError."""
        self.path = path
        self._check = threading.Lock()
        self._next_check = time.monotonic() + _CHECK_INTERVAL_SECONDS
        self._is_deleted = False
        super().__init__(self._open())
        self._limits_writes = _is_kind(self.descriptor, stat.S_ISFIFO)

    def write(self, line: str) -> None:
        """Appends one line. Raises OSError, also when the disk or the reader of a pipe does not respond.

        A deleted file still accepts lines, but they are lost. So it raises FileNotFoundError until a new file can be
        created.
        """
        if time.monotonic() >= self._next_check and self._check.acquire(blocking=False):
            try:
                self._check_path()
            finally:
                self._check.release()
        if self._is_deleted:
            raise FileNotFoundError
        super().write(line)

    def reopen(self) -> None:
        """Looks for a moved file at once, and creates a new one then."""
        with self._check:
            self._check_path()

    def close(self) -> None:
        """Closes the file. A later write fails, and cannot reach another file that reuses the descriptor's number."""
        with self._lock:
            if self.descriptor >= 0:
                os.close(self.descriptor)
            self.descriptor = -1

    def _open(self) -> int:
        """Opens the path. A pipe without a reader is an error: it must not hold up the thread until one comes."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        opened = os.open(self.path, flags, 0o600)
        os.set_blocking(opened, True)
        return opened

    def _check_path(self) -> None:
        with suppress(OSError):  # a file that was moved away still accepts lines
            self._reopen_if_moved()
        self._may_be_torn = True  # by another process
        with suppress(OSError):  # it is closed
            self._is_deleted = os.fstat(self.descriptor).st_nlink == 0

    def _reopen_if_moved(self) -> None:
        self._next_check = time.monotonic() + _CHECK_INTERVAL_SECONDS
        with suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(self.descriptor)):
                return
        opened = self._open()
        os.dup2(opened, self.descriptor, inheritable=False)  # so that no other thread can write to a closed file
        os.close(opened)
        self._limits_writes = _is_kind(self.descriptor, stat.S_ISFIFO)


def _size_if_torn(file: FileIO) -> int:
    """Returns the size of a file that ends within a line, in bytes; 0 for another one."""
    size = file.seek(0, os.SEEK_END)
    return size if size and os.pread(file.fileno(), 1, size - 1) != b"\n" else 0


def _is_kind(descriptor: int, kind: Callable[[int], bool]) -> bool:
    """Returns whether the mode of a descriptor is of a kind, such as stat.S_ISREG. One that is closed is of none."""
    try:
        return kind(os.fstat(descriptor).st_mode)
    except OSError:
        return False
