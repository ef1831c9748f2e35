"""Values that are read from files and reloaded when the files change."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from caseload_server.config import SettingError

T = TypeVar("T")
_log = structlog.get_logger()

CHECK_INTERVAL_SECONDS: Final = 1.0
"""The files are checked for changes at most this often."""
_MAX_WAIT_SECONDS: Final = 1.0
"""How long a caller waits for files that do not respond. While they do not, the last good value stays."""


class ReloadedFiles(Generic[T]):
    """A value that is read from files. A reload that fails keeps the last good value."""

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Reads the files for the first time. Raises SettingError.

        Args: read, returns the value and raises SettingError when the files are invalid; clock, in seconds.
        """
        self._clock = clock
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._next_check = self._clock() + CHECK_INTERVAL_SECONDS
        self._last_error = ""
        self._hangs = False
        self._signatures = _signatures(paths)
        self._value = read()

    def value(self) -> T:
        """Returns the value. It reflects the files as of at most CHECK_INTERVAL_SECONDS ago.

        The files are read in a thread of their own: the thread that receives calls must not wait for a disk that hangs.
        """
        if self._clock() >= self._next_check and self._lock.acquire(blocking=False):
            reload = threading.Thread(target=self._reload, name="file-reload", daemon=True)
            try:
                reload.start()
            except RuntimeError:  # no thread can be started: the next call tries again
                self._lock.release()
            else:
                reload.join(_MAX_WAIT_SECONDS)
                self._hangs = reload.is_alive()
                if self._hangs:
                    _log.error("file reload hangs, keeping the last good version")
        return self._value

    def reload(self) -> None:
        """Reads the files at once, even if they look unchanged. It can hang if their disk does."""
        with self._lock:
            self._signatures = []
            self._reload_if_changed()

    def is_failing(self) -> bool:
        """Returns whether the last reload failed or hangs, so that the value is an older one."""
        return self._hangs or bool(self._last_error)

    def _reload(self) -> None:
        try:
            self._reload_if_changed()
        finally:
            self._hangs = False
            self._lock.release()

    def _reload_if_changed(self) -> None:
        self._next_check = self._clock() + CHECK_INTERVAL_SECONDS
        signatures = _signatures(self._paths)  # before reading, so that the next check sees a change during the read
        if signatures == self._signatures:
            return
        self._signatures = signatures
        try:
            self._value = self._read()
        except SettingError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - a defect must not go unseen, and the next version may be readable
            self._fail(f"a defect: {type(error).__qualname__}")
        else:
            self._last_error = ""
            _log.info("files reloaded", files=[path.name for path in self._paths])

    def _fail(self, fault: str) -> None:
        self._signatures = []  # the cause may be temporary, so the next check tries again
        if self._last_error != fault:
            _log.error("file reload failed, keeping the last good version", fault=fault)
        self._last_error = fault


def _signatures(paths: Sequence[Path]) -> list[tuple[int, ...]]:
    return [_signature(path) for path in paths]


def _signature(path: Path) -> tuple[int, ...]:
    """Values that differ after any change of the file; empty when the file cannot be examined."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
