"""Migrates the schema of a PostgreSQL database, in one transaction, one process at a time."""

from contextlib import suppress

import psycopg

from caseload_server.store.backends.migrations import (
    SELECT_STEPS,
    Migration,
    SchemaError,
    apply,
    migrations,
    must_run_alone,
    unapplied,
)
from caseload_server.store.backends.postgres.connection import Connection, connect
from caseload_server.store.backends.postgres.reads import read_session
from caseload_server.store.backends.postgres.store_check import take_alone
from caseload_server.store.backends.postgres.transaction import PostgresTransaction

_ADVISORY_LOCK_KEY = 0x43534C44
"""Key of the advisory lock that serializes migrating processes ("CSLD")."""
_CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS migration (name TEXT COLLATE "C" PRIMARY KEY, checksum TEXT COLLATE "C" NOT NULL)"""
_BLOCK_WRITES = "LOCK TABLE request, assignment, therapist, patient IN SHARE ROW EXCLUSIVE MODE;"
"""Blocks writes until the migration commits. Every write locks the table request first. So writes in progress finish,
and later ones wait before they hold any other lock. No index or trigger needs a stronger mode: upgrading a lock can
deadlock. https://www.postgresql.org/docs/current/explicit-locking.html"""
_DEADLOCK_RETRIES = 3
"""Deadlocks remain possible: with a foreign transaction, or with a write of an older version that only validates."""
_SELECT_TABLES = """
SELECT relname FROM pg_class AS relation
WHERE relnamespace = to_regnamespace(quote_ident(current_schema())) AND relkind IN ('r', 'p')
    AND NOT EXISTS (
        SELECT FROM pg_depend
        WHERE classid = 'pg_class'::regclass AND objid = relation.oid
            AND refclassid = 'pg_extension'::regclass AND deptype = 'e')"""
"""Leaves out the tables of extensions: PostGIS puts spatial_ref_sys into the schema public.
https://www.postgresql.org/docs/current/catalog-pg-depend.html"""
_SELECT_OTHER_SCHEMA = b"""
SELECT FROM pg_class AS migration, pg_class AS store
WHERE migration.oid = to_regclass('migration') AND store.oid = to_regclass('store')
    AND store.relnamespace = migration.relnamespace
    AND migration.relnamespace <> coalesce(to_regnamespace(quote_ident(current_schema())), 0)"""
"""Finds a store in the search_path that is not in its first schema, where PostgreSQL would create new tables."""


def pending(url: str, steps: list[Migration] | None = None) -> list[Migration]:
    """Returns the steps that `migrate` would run. Changes nothing.

    Args: steps, all of this version unless given. Raises SchemaError, psycopg.Error.
    """
    with connect(url, refuses_pooling=True) as connection:
        return unapplied(_read_applied(connection), migrations("postgres") if steps is None else steps)


def migrate(url: str, steps: list[Migration] | None = None) -> list[Migration]:
    """Runs the pending steps and returns them.

    Args: steps, all of this version unless given. Raises SchemaError, also while an instance is connected and a step
    must run alone; psycopg.Error.
    """
    steps = migrations("postgres") if steps is None else steps
    with connect(url, refuses_pooling=True) as connection:
        for _ in range(_DEADLOCK_RETRIES):
            with suppress(psycopg.errors.DeadlockDetected):
                return _migrate(connection, steps)
        return _migrate(connection, steps)


def _migrate(connection: Connection, steps: list[Migration]) -> list[Migration]:
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '60s'")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_ADVISORY_LOCK_KEY])
        todo = unapplied(_read_applied(connection), steps)
        if must_run_alone(todo, steps):
            take_alone(connection)
        prepare = _CREATE_TABLE if todo == steps else _BLOCK_WRITES + _CREATE_TABLE
        transaction = PostgresTransaction(read_session(connection))
        apply(todo, prepare, transaction, lambda sql: connection.execute(sql.encode()))
    return todo


def _read_applied(connection: Connection) -> list[tuple[str, str]]:
    if connection.info.parameter_status("server_encoding") != "UTF8":
        raise SchemaError("its encoding is not UTF8")
    if connection.execute(_SELECT_OTHER_SCHEMA).fetchall():
        raise SchemaError("its tables are not in the first schema of the search_path: set search_path to their schema")
    tables = {name for (name,) in connection.execute(_SELECT_TABLES)}
    if tables and "migration" not in tables:
        raise SchemaError("it holds the tables of another application")
    try:
        return [(name, checksum) for name, checksum in connection.execute(SELECT_STEPS)] if tables else []
    except psycopg.errors.UndefinedColumn:
        raise SchemaError("it holds the tables of another application") from None
