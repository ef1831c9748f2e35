"""A SQLite file is written anew, so that nothing of what was erased is left in it.

secure_delete overwrites what is deleted, but not the copies that moved rows leave in the gaps of pages.
https://sqlite.org/lang_vacuum.html, https://sqlite.org/wal.html
"""

import os
import time
from pathlib import Path
from typing import Final

import apsw

from caseload_server.store.backends.sqlite import database as sqlite

_PATIENCE_SECONDS: Final = 30.0
_TRY_MILLISECONDS: Final = 100
"""For calls that read to end, while writers wait. What reads for longer is waited for between the tries."""
_TRUNCATE: Final = "PRAGMA wal_checkpoint(TRUNCATE)"


def is_in_use(path: Path) -> bool:
    """Whether anyone else has the file open. Raises apsw.Error."""
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
    """Writes the file anew, and empties its log. Writers wait meanwhile; that takes room for two more of the file.

    Raises apsw.BusyError where others read all the time, apsw.Error.
    """
    os.environ["SQLITE_TMPDIR"] = str(path.parent)  # a disk where there is room for it
    connection = sqlite.connect(path, create=False)
    try:
        connection.pragma("temp_store", 1)
        connection.execute("VACUUM")
        connection.set_busy_timeout(_TRY_MILLISECONDS)
        until = time.monotonic() + _PATIENCE_SECONDS
        while connection.execute(_TRUNCATE).fetchall()[0][0]:  # another checkpoint, or a reader, is in the way
            if time.monotonic() > until:
                raise apsw.BusyError
            time.sleep(0.01)
    finally:
        connection.close()
