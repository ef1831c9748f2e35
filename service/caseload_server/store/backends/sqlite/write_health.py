"""Whether a SQLite file accepts writes."""

import time
from contextlib import suppress
from typing import Final

import apsw
import structlog

from caseload_server.store.backends.sqlite.driver_errors import storage_failure

_PROBE_INTERVAL_SECONDS: Final = 0.5
_PROBE: Final = "PRAGMA user_version = 0"
"""Writes the first page of the file, and changes nothing in it. An UPDATE to the same values writes no page."""
_log = structlog.get_logger()


class WriteHealth:
    """Rejects writes after SQLite could not use its files, until the write of a probe succeeds.

    Only the thread that uses the writing connection calls its methods.
    """

    def __init__(self, writer: apsw.Connection) -> None:
        """Args: writer, the connection that writes."""
        self._writer = writer
        self._next_probe = 0.0
        self.failure: dict[str, str] = {}
        """The error that made the file reject writes, as fields of a log event. Empty while it accepts writes."""

    def record(self, error: BaseException, system_error: int) -> None:
        """Records and logs an error of a write, unless writes are rejected already, or the files can be used.

        Args: system_error, as `storage_failure`.
        """
        found = storage_failure(error, system_error)
        if found and not self.failure:
            self.failure = found
            self._next_probe = time.monotonic() + _PROBE_INTERVAL_SECONDS
            _log.error("database rejects writes", **found)

    def accepts_writes(self) -> bool:
        """Returns whether to try a write. Probes at most every _PROBE_INTERVAL_SECONDS."""
        if not self.failure:
            return True
        if time.monotonic() >= self._next_probe and self._probe():
            self.failure = {}
            _log.warning("database accepts writes again")
        return not self.failure

    def _probe(self) -> bool:
        self._next_probe = time.monotonic() + _PROBE_INTERVAL_SECONDS
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.execute(_PROBE)
            self._writer.execute("COMMIT")
        except apsw.Error:
            with suppress(apsw.Error):
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
            return False
        return True
