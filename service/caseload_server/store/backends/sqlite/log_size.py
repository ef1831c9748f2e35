"""Keeps SQLite's write-ahead log small.

SQLite reuses the log from its start once all of it is in the database and no connection reads it. But it never makes
the file smaller: after a long read beside writes, the file keeps its largest size.
https://sqlite.org/wal.html#avoiding_excessively_large_wal_files
"""

import signal
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import apsw

MAX_BYTES: Final = 64 * 1024 * 1024
"""A larger log is emptied. Without long reads it has some 4 MiB, after which SQLite begins again at its start."""
INTERVAL_SECONDS: Final = 5.0
_WAIT_MILLISECONDS: Final = 100
"""How long the log's last frames may wait for reads to end. Writers wait too, so a longer read gets another try."""

_STOP_SECONDS: Final = 1.0


class LogSize:
    """Empties a large log in a thread, as soon as no connection reads it."""

    def __init__(self, log: Path, connect: Callable[[], apsw.Connection]) -> None:
        """Args: log, the -wal file; connect, opens its database."""
        self._log = log
        self._connect = connect
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-size", daemon=True)

    def start(self) -> None:
        """Starts the thread. It takes no signals, because a command defers them in its main thread only."""
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def stop(self) -> None:
        """Stops the thread."""
        self._stopped.set()
        self._thread.join(_STOP_SECONDS)  # a long checkpoint ends with the process

    def bytes(self) -> int:
        """Returns the size of the log."""
        try:
            return self._log.stat().st_size
        except OSError:  # there is none before the first write
            return 0

    def limit(self) -> None:
        """Empties the log if it is larger than MAX_BYTES and no connection reads it. Raises apsw.Error."""
        if self.bytes() <= MAX_BYTES:
            return
        with closing(self._connect()) as connection:
            # Copies the log into the database beside writes. The second step stops them, and has little left to copy.
            [(busy, frames, copied)] = connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            if not busy and copied == frames:
                connection.set_busy_timeout(_WAIT_MILLISECONDS)
                list(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)"))

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_SECONDS):
            try:
                self.limit()
            except Exception:  # noqa: BLE001, S112 - writes and readiness report a disk that fails
                continue
