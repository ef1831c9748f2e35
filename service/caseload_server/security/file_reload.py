"""What is read from files, and read again when they change."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from caseload_server.config import SettingError

T = TypeVar("T")
_log = structlog.get_logger()

LOOK_SECONDS: Final = 1.0
"""How old what is known of the files may be."""


class Reloading(Generic[T]):
    """A value made of files. Where they change into what cannot be used, the value stays as it was."""

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: read, makes the value of the files; raises SettingError, here too. clock, in seconds."""
        self._clock = clock
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._due = self._clock() + LOOK_SECONDS
        self._fault = ""
        self._stamp = _stamp(paths)
        self._value = read()

    def value(self) -> T:
        """The value, of files as they were a second ago or later."""
        if self._clock() >= self._due and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._value

    def _look(self) -> None:
        self._due = self._clock() + LOOK_SECONDS
        stamp = _stamp(self._paths)  # before the files are read: what changes meanwhile is seen the next time
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._value = self._read()
        except SettingError as error:
            self._stamp = []  # it may be the moment's fault: tried again with the next look
            if self._fault != str(error):
                _log.error("cannot be read anew, and stays as it was", fault=str(error))
            self._fault = str(error)
        else:
            self._fault = ""
            _log.info("read anew", files=[path.name for path in self._paths])


def _stamp(paths: Sequence[Path]) -> list[tuple[int, ...]]:
    return [_stamp_of(path) for path in paths]


def _stamp_of(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
