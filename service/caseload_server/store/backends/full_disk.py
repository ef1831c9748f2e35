"""The log events of a database whose disk is full."""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

QUIET_SECONDS: Final = 10.0
"""The disk counts as full until no write has failed for this long: small writes can still find space."""
_log = structlog.get_logger()


class FullDisk:
    """Logs when writes begin to fail because the disk is full, and when they succeed again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: clock, in seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._last_failure: float | None = None
        self._has_succeeded = False
        """Whether a write has succeeded since the last failure."""

    def record_failure(self) -> None:
        """Records a write that failed because the disk is full."""
        with self._lock:
            is_first = self._last_failure is None
            self._last_failure, self._has_succeeded = self._clock(), False
        if is_first:
            _log.error("database disk full")

    def record_success(self) -> None:
        """Records a write that succeeded."""
        if self._last_failure is not None:
            self._has_succeeded = True

    def report_recovery(self) -> None:
        """Logs that writes succeed again, once they do. Call it repeatedly."""
        last = self._last_failure
        if last is not None and self._has_succeeded and self._clock() - last >= QUIET_SECONDS:
            self._last_failure = None
            _log.warning("database disk has space again")
