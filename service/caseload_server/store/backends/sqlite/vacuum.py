"""Rewrites a SQLite file so that it keeps no trace of purged records.

secure_delete overwrites deleted rows. It does not overwrite the copies that moved rows leave in the gaps of pages.
https://sqlite.org/lang_vacuum.html, https://sqlite.org/wal.html
"""

import os
import time
from pathlib import Path
from typing import Final

import apsw

from caseload_server.store.backends.sqlite.connection import connect

_CHECKPOINT_TIMEOUT_SECONDS: Final = 30.0
"""How long the checkpoint is retried while others read."""
_BUSY_TIMEOUT_MILLISECONDS: Final = 100
"""How long one checkpoint waits for reads to end. Writers wait too, so longer reads are waited for between tries."""
_TRUNCATE: Final = "PRAGMA wal_checkpoint(TRUNCATE)"


def is_in_use(path: Path) -> bool:
    """Returns whether another connection has the file open. Raises apsw.Error."""
    probe = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        probe.pragma("locking_mode", "exclusive")
        list(probe.execute("SELECT 1 FROM sqlite_schema LIMIT 1"))
    except apsw.BusyError:
        return True
    finally:
        probe.close()
    return False


def vacuum(path: Path) -> None:
    """Rewrites the file and empties its write-ahead log. Writers wait meanwhile.

    It needs free disk space of twice the file's size. Raises apsw.BusyError while others keep reading, apsw.Error.
    """
    os.environ["SQLITE_TMPDIR"] = str(path.parent)  # a disk with enough space
    connection = connect(path, create=False)
    try:
        connection.pragma("temp_store", 1)
        connection.execute("VACUUM")
        connection.set_busy_timeout(_BUSY_TIMEOUT_MILLISECONDS)
        deadline = time.monotonic() + _CHECKPOINT_TIMEOUT_SECONDS
        while connection.execute(_TRUNCATE).fetchall()[0][0]:  # blocked by another checkpoint or a reader
            if time.monotonic() > deadline:
                raise apsw.BusyError
            time.sleep(0.01)
    finally:
        connection.close()
