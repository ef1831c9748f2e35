"""Migrates the schema of a SQLite file, in one transaction."""

from contextlib import closing
from itertools import count
from pathlib import Path

import apsw

from caseload_server.store.backends.migrations import (
    SELECT_STEPS,
    SERVED,
    Migration,
    SchemaError,
    apply,
    migrations,
    must_run_alone,
    unapplied,
)
from caseload_server.store.backends.sqlite.connection import APPLICATION_ID, busy_handler, connect
from caseload_server.store.backends.sqlite.file_check import check_files
from caseload_server.store.backends.sqlite.reading import reading
from caseload_server.store.backends.sqlite.transaction import SqliteTransaction
from caseload_server.store.backends.sqlite.vacuum import is_in_use

_PREPARE = f"""
PRAGMA application_id = {APPLICATION_ID};
CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, checksum TEXT NOT NULL) STRICT"""


def pending(path: Path, steps: list[Migration] | None = None) -> list[Migration]:
    """Returns the steps that `migrate` would run. Changes and creates nothing.

    Args: steps, all of this version unless given. Raises SchemaError for a file of another application, of a newer
    version, or migrated with other texts.
    """
    steps = migrations("sqlite") if steps is None else steps
    if not path.exists():
        return steps
    with reading(path) as connection:
        return unapplied(_read_applied(connection), steps)


def migrate(path: Path, steps: list[Migration] | None = None) -> list[Migration]:
    """Runs the pending steps and returns them. Creates the file if it does not exist.

    Args: steps, all of this version unless given. Raises SchemaError, also while an instance uses the file and a step
    must run alone; apsw.Error.
    """
    steps = migrations("sqlite") if steps is None else steps
    check_files(path, for_writing=True)
    if must_run_alone(pending(path, steps), steps) and is_in_use(path):
        raise SchemaError(SERVED)
    with closing(_open(path)) as connection:
        unapplied(_read_applied(connection), steps)  # raises before anything is changed
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        _use_log(connection)
        connection.transaction_mode = "IMMEDIATE"  # of several processes that start together, one migrates
        with connection:
            todo = unapplied(_read_applied(connection), steps)
            apply(todo, _PREPARE, SqliteTransaction(connection), connection.execute)
        return todo


def _open(path: Path) -> apsw.Connection:
    """Opens a connection that keeps a -wal file left by a crash: the file may belong to another application."""
    has_log = Path(f"{path}-wal").exists()
    connection = connect(path, create=True)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_log)
    return connection


def _use_log(connection: apsw.Connection) -> None:
    """Switches the file to a write-ahead log. Raises SchemaError, apsw.BusyError.

    It waits for a process that does the same. SQLite does not wait there, because each of the two would hold a lock
    that the other needs. https://sqlite.org/c3ref/busy_handler.html
    """
    may_wait = busy_handler()
    for tries in count():
        try:
            mode = connection.pragma("journal_mode", "wal")
        except apsw.BusyError:
            if not may_wait(tries):
                raise
        else:
            break
    if mode != "wal":
        raise SchemaError("its file system cannot hold a write-ahead log")


def _read_applied(connection: apsw.Connection) -> list[tuple[str, str]]:
    with connection:  # a transaction: another process may be migrating the file
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema")]
        if "migration" in tables and connection.pragma("application_id") == APPLICATION_ID:
            return list(connection.execute(SELECT_STEPS))
    if tables:
        raise SchemaError("it holds the tables of another application")
    return []
