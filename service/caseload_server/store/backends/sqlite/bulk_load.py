"""Fills an empty SQLite file in bulk, for `caseload import`."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw

from caseload_server.store.atomic_file import atomic_file
from caseload_server.store.backends.migrations import SERVED, SchemaError
from caseload_server.store.backends.protocol import Row, Value
from caseload_server.store.backends.sqlite.connection import connect
from caseload_server.store.backends.sqlite.file_check import check_files
from caseload_server.store.backends.sqlite.migrate import migrate
from caseload_server.store.portability.content import SEARCH_TABLES, TABLES
from caseload_server.store.portability.import_loader import ConstraintViolation

_SELECT_INDEXES = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY rowid"


class SqliteBulkLoad:
    """Implements BulkLoad on an empty file."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def add(self, table: str, columns: tuple[str, ...], rows: list[Row]) -> None:
        placeholders = ", ".join("?" * len(columns))
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({placeholders})"
        try:
            self._connection.executemany(sql, rows)
        except apsw.ConstraintError as error:
            raise ConstraintViolation(str(error)) from None

    def run(self, sql: str) -> None:
        self._connection.execute(sql)

    def set_store_row(self, columns: dict[str, Value]) -> None:
        assignments = ", ".join(f"{name} = :{name}" for name in columns)
        self._connection.execute(f"UPDATE store SET {assignments}", columns)


@contextmanager
def bulk_load(path: Path) -> Iterator[SqliteBulkLoad]:
    """Fills a migrated, empty file, or a new one, for the duration of the with block. An exception leaves it as it was.

    Raises SchemaError for a file that is not empty or is being served, FileExistsError for a file beside a new one,
    ConstraintViolation, apsw.Error, OSError.
    """
    with _fill_existing(path) if path.exists() else _fill_new(path) as connection:
        try:
            with _bulk_transaction(connection):
                yield SqliteBulkLoad(connection)
        except apsw.ConstraintError as error:
            raise ConstraintViolation(str(error)) from None


@contextmanager
def _fill_new(path: Path) -> Iterator[apsw.Connection]:
    """Creates a file under a temporary name, without everything that would protect it from a crash."""
    with atomic_file(path) as partial_file:
        migrate(partial_file)
        with closing(connect(partial_file, create=False)) as connection:
            connection.pragma("journal_mode", "off")
            connection.pragma("synchronous", "off")
            connection.pragma("locking_mode", "exclusive")
            yield connection
            connection.pragma("journal_mode", "wal")


@contextmanager
def _fill_existing(path: Path) -> Iterator[apsw.Connection]:
    """Locks the file, so that no other process opens it. After a crash its -journal file makes it empty again."""
    check_files(path, for_writing=True)
    with closing(connect(path, create=False)) as connection:
        _require_empty(connection)  # before anything is changed
        _take_alone(connection)
        try:
            _require_empty(connection)
            yield connection
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            connection.pragma("journal_mode", "wal")


def _take_alone(connection: apsw.Connection) -> None:
    """Locks the file until the connection closes. Raises SchemaError if another process has it open.

    The new journal holds only the few pages of the empty file.
    """
    connection.set_busy_timeout(0)
    connection.pragma("locking_mode", "exclusive")
    try:
        connection.pragma("journal_mode", "delete")
    except apsw.BusyError:
        raise SchemaError(SERVED) from None


def _require_empty(connection: apsw.Connection) -> None:
    """Raises SchemaError if a table has a row, or the store has a revision."""
    for table in (*(table.name for table in TABLES), *SEARCH_TABLES):
        where = " WHERE head_revision > 0" if table == "store" else ""
        if connection.execute(f"SELECT 1 FROM {table}{where} LIMIT 1").fetchone():
            raise SchemaError("is not empty")


@contextmanager
def _bulk_transaction(connection: apsw.Connection) -> Iterator[None]:
    """Runs one transaction that builds the indexes and checks the foreign keys at its end."""
    connection.pragma("foreign_keys", 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)  # they reject purged ids, and a new file has none
    connection.pragma("cache_size", -64 * 1024)  # KiB
    # Indexes are sorted on the database's own disk instead of in memory, with a second core.
    os.environ["SQLITE_TMPDIR"] = str(Path(connection.filename).parent)
    connection.pragma("temp_store", 1)
    connection.pragma("threads", 2)
    connection.execute("BEGIN")
    indexes = list(connection.execute(_SELECT_INDEXES))
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    yield
    connection.pragma("cache_size", -16 * 1024)  # KiB; each sorting thread takes several times as much
    for _, sql in indexes:  # in their original order, by which SQLite chooses among equal indexes
        connection.execute(sql)
    if connection.execute("PRAGMA foreign_key_check").fetchone():
        raise ConstraintViolation("FOREIGN KEY constraint failed")
    connection.execute("COMMIT")
