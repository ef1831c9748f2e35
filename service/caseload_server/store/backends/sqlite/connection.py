"""Connections to a SQLite file, with every setting that the store relies on.

https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw

APPLICATION_ID: Final = 0x43534C44
"""Identifies a caseload file ("CSLD"). https://sqlite.org/pragma.html#pragma_application_id"""
SYNCHRONOUS: Final = "FULL"
"""A commit is on disk before it is acknowledged. With a lower level the power-loss test fails."""
_BUSY_TIMEOUT_SECONDS: Final = 5.0
"""How long a statement waits for the lock of another process."""
_BUSY_SLEEP_SECONDS: Final = 0.0005


def connect(path: Path, *, create: bool) -> apsw.Connection:
    """Opens the file for writing, with every setting that the store relies on. Raises apsw.Error."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOMUTEX | (apsw.SQLITE_OPEN_CREATE if create else 0)
    if create:  # SQLite itself would let other users read it
        with suppress(OSError):  # it exists, or SQLite describes what is wrong with the path
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=256)
    if connection.readonly("main"):  # SQLite falls back to read-only; a reader would leave a -wal and a -shm file
        connection.close()
        raise apsw.ReadOnlyError
    configure(connection)
    connection.pragma("foreign_keys", 1)
    connection.pragma("secure_delete", 1)
    connection.pragma("synchronous", SYNCHRONOUS)
    return connection


def configure(connection: apsw.Connection) -> None:
    """Sets what reading connections need too."""
    connection.set_busy_handler(busy_handler())
    connection.pragma("trusted_schema", 0)
    connection.pragma("temp_store", 2)  # in memory: what a savepoint spills are pages with personal data


def busy_handler() -> Callable[[int], bool]:
    """Returns a function that waits a moment for a lock, and returns False once the waits have taken too long.

    Its argument is the number of tries before.
    """
    started = 0.0

    def wait_for_lock(tries: int) -> bool:
        # SQLite's own back-off starves some of several writing processes. Short, equal sleeps share the lock better.
        nonlocal started
        if tries == 0:
            started = time.monotonic()
        time.sleep(_BUSY_SLEEP_SECONDS)
        return time.monotonic() - started < _BUSY_TIMEOUT_SECONDS

    return wait_for_lock
