"""Brings a SQLite file's schema up to date, in one transaction."""

import secrets
from pathlib import Path

import apsw

from caseload_server.store.backends.migrations import Migration, SchemaError, migrations, unapplied
from caseload_server.store.backends.sqlite import database as sqlite

_READ_A_URI = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
_TABLE = "CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, checksum TEXT NOT NULL) STRICT"


def pending(path: Path, known: list[Migration] | None = None) -> list[Migration]:
    """The steps that `migrate` would run; changes and creates nothing.

    Raises SchemaError for a file that is not ours, is newer than this version, or was migrated with other texts.
    """
    steps = migrations("sqlite") if known is None else known
    if not path.exists():
        return steps
    try:
        connection = _opened(path, create=False)
    except apsw.ReadOnlyError:  # such as a copy on a read-only disk; without immutable a -wal file could be left there
        connection = apsw.Connection(f"{path.absolute().as_uri()}?immutable=1", flags=_READ_A_URI)
    try:
        return _unapplied(connection, steps)
    finally:
        connection.close()


def migrate(path: Path, known: list[Migration] | None = None) -> list[Migration]:
    """Runs the pending steps, in a new file where there is none, and returns them. Raises SchemaError, apsw.Error."""
    steps = migrations("sqlite") if known is None else known
    connection = _opened(path, create=True)
    try:
        _unapplied(connection, steps)  # refuses before anything is touched
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        if connection.pragma("journal_mode", "wal") != "wal":
            raise SchemaError("its file system cannot hold a write-ahead log")
        return _apply(connection, steps)
    finally:
        connection.close()


def _opened(path: Path, *, create: bool) -> apsw.Connection:
    """A connection that leaves the log of a crash as it is: the file may be another application's."""
    has_log = Path(f"{path}-wal").exists()
    connection = sqlite.connect(path, create=create)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_log)
    return connection


def _apply(connection: apsw.Connection, steps: list[Migration]) -> list[Migration]:
    connection.transaction_mode = "IMMEDIATE"  # of several processes that start together, one migrates
    with connection:
        todo = _unapplied(connection, steps)
        if not todo:
            return []
        connection.pragma("application_id", sqlite.APPLICATION_ID)
        connection.execute(_TABLE)
        for step in todo:
            connection.execute(step.sql)
            connection.execute("INSERT INTO migration (name, checksum) VALUES (?, ?)", (step.name, step.checksum))
        connection.execute(
            "INSERT INTO store VALUES (1, ?, ?, 0, 0) ON CONFLICT DO NOTHING",
            (secrets.token_hex(6), secrets.token_bytes(32)),
        )
    return todo


def _unapplied(connection: apsw.Connection, steps: list[Migration]) -> list[Migration]:
    with connection:  # one state of a file that another process may be migrating
        applied = _applied(connection)
    return unapplied(applied, steps)


def _applied(connection: apsw.Connection) -> list[tuple[str, str]]:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema")]
    if "migration" in tables and connection.pragma("application_id") == sqlite.APPLICATION_ID:
        return list(connection.execute("SELECT name, checksum FROM migration ORDER BY name"))
    if tables:
        raise SchemaError("it holds the tables of another application")
    return []
