"""A new SQLite file, filled at one go."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from caseload_server.store.atomic_file import new_file
from caseload_server.store.backends.protocol import Row
from caseload_server.store.backends.sqlite import database as sqlite
from caseload_server.store.backends.sqlite.migrate import migrate
from caseload_server.store.portability.import_loader import RuleBroken

_INDEXES = "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY rowid"


class SqliteLoading:
    """An empty file as a Loading."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def add(self, table: str, columns: tuple[str, ...], rows: list[Row]) -> None:
        marks = ", ".join("?" * len(columns))
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        try:
            self._connection.executemany(sql, rows)
        except apsw.ConstraintError as error:
            raise RuleBroken(str(error)) from None

    def adopt(self, secret: bytes, head_revision: int, oldest_revision: int) -> None:
        sql = "UPDATE store SET secret = ?, head_revision = ?, oldest_revision = ?"
        self._connection.execute(sql, (secret, head_revision, oldest_revision))


@contextmanager
def loading(path: Path) -> Iterator[SqliteLoading]:
    """A store in a file that does not exist yet, and does not where the with block raises.

    The file is filled under another name, without a journal: where it fails it goes. Raises FileExistsError,
    RuleBroken, apsw.Error, OSError.
    """
    with new_file(path) as part:
        migrate(part)
        connection = sqlite.connect(part, create=False)
        try:
            with _unguarded(connection):
                yield SqliteLoading(connection)
        except apsw.ConstraintError as error:
            raise RuleBroken(str(error)) from None
        finally:
            connection.close()


@contextmanager
def _unguarded(connection: apsw.Connection) -> Iterator[None]:
    """With nothing that would save the file from a crash, and with indexes and foreign keys looked after at the end."""
    connection.pragma("journal_mode", "off")
    connection.pragma("synchronous", "off")
    connection.pragma("locking_mode", "exclusive")
    connection.pragma("foreign_keys", 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)  # no id was purged before
    connection.pragma("cache_size", -64 * 1024)  # KiB
    # Indexes are sorted on the database's own disk and not in memory, by a second core too.
    os.environ["SQLITE_TMPDIR"] = str(Path(connection.filename).parent)
    connection.pragma("temp_store", 1)
    connection.pragma("threads", 2)
    indexes = list(connection.execute(_INDEXES))
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    connection.execute("BEGIN")
    yield
    connection.pragma("cache_size", -16 * 1024)  # each sorting thread takes as much several times over
    for _, sql in indexes:  # in their old order, which is what SQLite chooses among equals by
        connection.execute(sql)
    connection.execute("COMMIT")
    if connection.execute("PRAGMA foreign_key_check").fetchone():
        raise RuleBroken("FOREIGN KEY constraint failed")
    connection.pragma("journal_mode", "wal")
