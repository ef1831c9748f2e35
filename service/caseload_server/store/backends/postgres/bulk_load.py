"""An empty PostgreSQL store, filled in one transaction: https://www.psycopg.org/psycopg3/docs/basic/copy.html"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from caseload_server.store.backends.migrations import SchemaError
from caseload_server.store.backends.postgres.connection_pool import Connection
from caseload_server.store.backends.postgres.database import connect
from caseload_server.store.backends.protocol import Row
from caseload_server.store.portability.content import FOUND, TABLES
from caseload_server.store.portability.import_loader import RuleBroken

# What is quicker to look at once, when all rows are there: how to drop it, and how to make it again.
_MADE_LAST = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
    format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE contype = 'f' AND connamespace = current_schema()::regnamespace
UNION ALL
SELECT format('ALTER TABLE %s DISABLE TRIGGER %I', tgrelid::regclass, tgname),
    format('ALTER TABLE %s ENABLE TRIGGER %I', tgrelid::regclass, tgname)
FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal
UNION ALL
SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE relnamespace = current_schema()::regnamespace
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"""
_SERVED = b"""
SELECT FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'caseload' AND pid <> pg_backend_pid() LIMIT 1"""
_NO_HURRY = " -c statement_timeout=0 -c idle_in_transaction_session_timeout=0"


def unhurried(url: str) -> str:
    """The URL of the same database for a transaction that may last, and wait for a reader or for standard input."""
    options = conninfo_to_dict(url).get("options") or ""
    return make_conninfo(url, options=f"{options}{_NO_HURRY}")


class PostgresLoading:
    """A transaction on an empty database as a Loading."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, table: str, columns: tuple[str, ...], rows: list[Row]) -> None:
        copy_in = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        try:
            with self._connection.cursor().copy(copy_in.encode()) as copy:
                for row in rows:
                    copy.write_row(row)
        except psycopg.IntegrityError as error:
            raise RuleBroken(error.diag.constraint_name or error.diag.column_name) from None

    def adopt(self, secret: bytes, head_revision: int, oldest_revision: int) -> None:
        sql = b"UPDATE store SET secret = %s, head_revision = %s, oldest_revision = %s"
        self._connection.execute(sql, (secret, head_revision, oldest_revision))


@contextmanager
def loading(url: str) -> Iterator[PostgresLoading]:
    """A migrated database that is empty still, and is again where the with block raises.

    Raises SchemaError where it is not, RuleBroken, psycopg.Error.
    """
    with connect(unhurried(url)) as connection, connection.transaction():
        _lock_empty(connection)
        _refuse_served(connection)
        made_last = connection.execute(_MADE_LAST).fetchall()
        for drop, _ in made_last:
            connection.execute(drop.encode())
        yield PostgresLoading(connection)
        try:
            for _, make in made_last:
                connection.execute(make.encode())
        except psycopg.IntegrityError as error:
            raise RuleBroken(error.diag.constraint_name) from None
        connection.execute("ANALYZE")  # or the first plans would be those of empty tables


def _refuse_served(connection: Connection) -> None:
    """Raises SchemaError. An instance read the store's secret when it started, and would go on with that."""
    until = time.monotonic() + 1  # it takes a moment until a connection that was closed is gone
    while connection.execute(_SERVED).fetchall():
        if time.monotonic() > until:
            raise SchemaError("is served: stop its instances first")
        time.sleep(0.02)


def _lock_empty(connection: Connection) -> None:
    """Keeps all others from writing. Raises SchemaError."""
    for table in (*(table.name for table in TABLES), *FOUND):
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        where = " WHERE head_revision > 0" if table == "store" else ""
        if connection.execute(f"SELECT 1 FROM {table}{where} LIMIT 1".encode()).fetchone():
            raise SchemaError("is not empty")
