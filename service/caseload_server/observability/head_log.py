"""Logs the head of the change log. A copy of this log elsewhere then shows whether somebody rewrote the change log."""

import threading
from collections.abc import Callable
from typing import Final

import structlog

from caseload_server.domain.results import LogHead

INTERVAL_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 1.0
_log = structlog.get_logger()


class HeadLog:
    """Logs the head once a minute, if it has changed since its last line."""

    def __init__(self, read_head: Callable[[], LogHead], interval_seconds: float = INTERVAL_SECONDS) -> None:
        """Args: read_head, returns the head, and raises when the database does not answer."""
        self._read_head = read_head
        self._interval_seconds = interval_seconds
        self._last: LogHead | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="head-log", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)  # a read may hang

    def log_head(self) -> None:
        """Logs the head if it has changed since the last line."""
        try:
            head = self._read_head()
        except Exception:  # noqa: BLE001 - readiness reports it, and the thread must survive any failure
            return
        if head != self._last:
            self._last = head
            _log.info("change log head", revision=head.revision, hash=head.hash.hex())

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            self.log_head()
