"""Fills a new SQLite file in bulk, for `caseload import`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from caseload_server.store.atomic_file import atomic_file
from caseload_server.store.backends.protocol import Row, Value
from caseload_server.store.backends.sqlite import database as sqlite
from caseload_server.store.backends.sqlite.migrate import migrate
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

    def set_store_row(self, columns: dict[str, Value]) -> None:
        assignments = ", ".join(f"{name} = :{name}" for name in columns)
        self._connection.execute(f"UPDATE store SET {assignments}", columns)


@contextmanager
def bulk_load(path: Path) -> Iterator[SqliteBulkLoad]:
    """Creates a store in a new file, for the duration of the with block. An exception leaves no file.

    The file is filled under a temporary name and without a journal. Raises FileExistsError, ConstraintViolation,
    apsw.Error, OSError.
    """
    with atomic_file(path) as partial_file:
        migrate(partial_file)
        connection = sqlite.connect(partial_file, create=False)
        try:
            with _without_durability(connection):
                yield SqliteBulkLoad(connection)
        except apsw.ConstraintError as error:
            raise ConstraintViolation(str(error)) from None
        finally:
            connection.close()


@contextmanager
def _without_durability(connection: apsw.Connection) -> Iterator[None]:
    """Disables everything that protects the file from a crash. Builds indexes and checks foreign keys at the end."""
    connection.pragma("journal_mode", "off")
    connection.pragma("synchronous", "off")
    connection.pragma("locking_mode", "exclusive")
    connection.pragma("foreign_keys", 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)  # they reject purged ids, and a new file has none
    connection.pragma("cache_size", -64 * 1024)  # KiB
    # Indexes are sorted on the database's own disk instead of in memory, with a second core.
    os.environ["SQLITE_TMPDIR"] = str(Path(connection.filename).parent)
    connection.pragma("temp_store", 1)
    connection.pragma("threads", 2)
    indexes = list(connection.execute(_SELECT_INDEXES))
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    connection.execute("BEGIN")
    yield
    connection.pragma("cache_size", -16 * 1024)  # KiB; each sorting thread takes several times as much
    for _, sql in indexes:  # in their original order, by which SQLite chooses among equal indexes
        connection.execute(sql)
    connection.execute("COMMIT")
    if connection.execute("PRAGMA foreign_key_check").fetchone():
        raise ConstraintViolation("FOREIGN KEY constraint failed")
    connection.pragma("journal_mode", "wal")
