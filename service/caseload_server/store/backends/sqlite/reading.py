"""Opens a SQLite file for commands that only read. They change no file, and need no permission to."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import apsw

from caseload_server.store.backends.migrations import SchemaError
from caseload_server.store.backends.sqlite.connection import configure, connect
from caseload_server.store.backends.sqlite.file_check import check_files, has_unsaved_content, is_open_elsewhere
from caseload_server.store.backends.sqlite.transaction import SqliteTransaction

_READ_ONLY: Final = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_NOMUTEX | apsw.SQLITE_OPEN_URI
_BESIDE: Final = b"\0" * 65_536
"""As large as an empty -shm file and a little more."""
_NEEDS_LOG: Final = (
    "its -wal or -journal file has content, which SQLite can use only where it can write: copy both to such a folder"
)
_CHANGED: Final = "was changed while it was read: run the command again"


@contextmanager
def reading(path: Path) -> Iterator[apsw.Connection]:
    """Opens an existing database for the duration of the with block.

    Raises SchemaError if the file cannot be read, or if files beside it are missing; apsw.Error.
    """
    check_files(path)
    if not os.access(path, os.R_OK, effective_ids=True):
        raise SchemaError("the file cannot be read")
    before = _state(path)
    if writable := _open_writable(path):
        with closing(writable) as connection:
            yield connection
    elif is_open_elsewhere(path):
        with closing(_open_read_only(path, "mode=ro")) as connection:
            yield connection
    elif has_unsaved_content(path):
        raise SchemaError(_NEEDS_LOG)
    else:  # SQLite could not create a -wal file, and none is needed: https://sqlite.org/wal.html#readonly
        with closing(_open_read_only(path, "immutable=1")) as connection:
            yield connection
        if _state(path) != before:
            raise SchemaError(_CHANGED)


@contextmanager
def read_snapshot(path: Path) -> Iterator[SqliteTransaction]:
    """Opens a read transaction for the duration of the with block. Raises as `reading`."""
    with reading(path) as connection:
        connection.execute("BEGIN")
        yield SqliteTransaction(connection)


def _open_writable(path: Path) -> apsw.Connection | None:
    """Opens a connection for reading that does not change the -wal file of a crashed server.

    Returns None without permission to write, or without space for a -shm file.
    """
    if not all(os.access(each, os.W_OK, effective_ids=True) for each in (path, path.parent)):
        return None
    if not _takes_files(path.parent):
        return None
    keeps_log = has_unsaved_content(path)
    try:
        connection = connect(path, create=False)
    except apsw.ReadOnlyError:  # access(2) does not say that an error has made the file system read-only
        return None
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keeps_log)
    connection.pragma("query_only", 1)
    return connection


def _open_read_only(path: Path, parameters: str) -> apsw.Connection:
    connection = apsw.Connection(f"{path.as_uri()}?{parameters}", flags=_READ_ONLY)
    configure(connection)
    return connection


def _takes_files(folder: Path) -> bool:
    """Returns whether there is space for the files that SQLite makes beside a database."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(_BESIDE)
    except OSError:
        return False
    return True


def _state(path: Path) -> tuple[int, int, int, bool]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, has_unsaved_content(path)
