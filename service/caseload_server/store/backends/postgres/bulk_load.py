"""Fills an empty PostgreSQL store in one transaction, for `caseload import`.

https://www.psycopg.org/psycopg3/docs/basic/copy.html
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from caseload_server.store.backends.migrations import SchemaError
from caseload_server.store.backends.postgres.connection import WITHOUT_TIMEOUTS, Connection, connect
from caseload_server.store.backends.postgres.store_check import take_alone
from caseload_server.store.backends.protocol import Row, Value
from caseload_server.store.portability.content import SEARCH_TABLES, TABLES
from caseload_server.store.portability.import_loader import ConstraintViolation

# Selects what is faster to check or build once, after all rows are there: the DDL that drops it and that restores it.
_DEFERRED_DDL = """
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


class PostgresBulkLoad:
    """Implements BulkLoad in a transaction on an empty database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, table: str, columns: tuple[str, ...], rows: list[Row]) -> None:
        copy_in = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        try:
            with self._connection.cursor().copy(copy_in.encode()) as copy:
                for row in rows:
                    copy.write_row(row)
        except psycopg.IntegrityError as error:
            raise ConstraintViolation(error.diag.constraint_name or error.diag.column_name) from None

    def run(self, sql: str) -> None:
        self._connection.execute(sql.encode())

    def set_store_row(self, columns: dict[str, Value]) -> None:
        assignments = ", ".join(f"{name} = %({name})s" for name in columns)
        self._connection.execute(f"UPDATE store SET {assignments}".encode(), columns)


@contextmanager
def bulk_load(url: str) -> Iterator[PostgresBulkLoad]:
    """Opens a transaction on a migrated, empty database. It commits at the end of the with block.

    Raises SchemaError for a database that is not empty or is being served, ConstraintViolation, psycopg.Error.
    """
    with connect(url, WITHOUT_TIMEOUTS) as connection, connection.transaction():
        take_alone(connection)  # instances read the store's secret when they started
        _lock_empty_tables(connection)
        deferred = connection.execute(_DEFERRED_DDL).fetchall()
        for drop, _ in deferred:
            connection.execute(drop.encode())
        yield PostgresBulkLoad(connection)
        try:
            for _, restore in deferred:
                connection.execute(restore.encode())
        except psycopg.IntegrityError as error:
            raise ConstraintViolation(error.diag.constraint_name) from None
        _analyze(connection)


def _lock_empty_tables(connection: Connection) -> None:
    """Locks all tables against writes. Raises SchemaError if one is not empty."""
    for table in (*(table.name for table in TABLES), *SEARCH_TABLES):
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        where = " WHERE head_revision > 0" if table == "store" else ""
        if connection.execute(f"SELECT 1 FROM {table}{where} LIMIT 1".encode()).fetchone():
            raise SchemaError("is not empty")


def _analyze(connection: Connection) -> None:
    """Analyzes the tables with rows, else the first plans would be those of small tables.

    Not empty ones: once PostgreSQL knows that a table is empty, its plans read the whole table, also when it has grown.
    """
    for table in (*(table.name for table in TABLES), *SEARCH_TABLES):
        if connection.execute(f"SELECT 1 FROM {table} LIMIT 1".encode()).fetchone():
            connection.execute(f"ANALYZE {table}".encode())
