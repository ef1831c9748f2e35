"""Brings a PostgreSQL database's schema up to date, in one transaction, one process at a time."""

import secrets
from contextlib import suppress

import psycopg

from caseload_server.store.backends.migrations import Migration, SchemaError, migrations, unapplied
from caseload_server.store.backends.postgres.connection_pool import Connection
from caseload_server.store.backends.postgres.database import connect

_LOCK = 0x43534C44
"""Of the advisory lock that migrating processes take in turn ("CSLD")."""
_TABLE = """
CREATE TABLE IF NOT EXISTS migration (name TEXT COLLATE "C" PRIMARY KEY, checksum TEXT COLLATE "C" NOT NULL)"""
_NO_WRITES = "LOCK TABLE request, assignment, therapist, patient IN SHARE ROW EXCLUSIVE MODE"
"""Writes claim their request_id first: those under way end, and later ones wait while they hold nothing else. The
strongest mode that an index or a trigger takes, for a lock that is made stronger later can deadlock."""
_DEADLOCKS = 3
"""So many are tried again: with someone else's transaction, or a write that claims nothing since it only validates."""
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"


def pending(url: str, known: list[Migration] | None = None) -> list[Migration]:
    """The steps that `migrate` would run; changes nothing. Raises SchemaError, psycopg.Error."""
    with connect(url) as connection:
        return _unapplied(connection, migrations("postgres") if known is None else known)


def migrate(url: str, known: list[Migration] | None = None) -> list[Migration]:
    """Runs the pending steps and returns them. Raises SchemaError, psycopg.Error."""
    steps = migrations("postgres") if known is None else known
    with connect(url) as connection:
        for _ in range(_DEADLOCKS):
            with suppress(psycopg.errors.DeadlockDetected):
                return _migrate(connection, steps)
        return _migrate(connection, steps)


def _migrate(connection: Connection, steps: list[Migration]) -> list[Migration]:
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '60s'")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        todo = _unapplied(connection, steps)
        if not todo:
            return []
        if todo != steps:
            connection.execute(_NO_WRITES)
        connection.execute(_TABLE)
        for step in todo:
            connection.execute(step.sql.encode())
            connection.execute("INSERT INTO migration (name, checksum) VALUES (%s, %s)", [step.name, step.checksum])
        connection.execute(
            "INSERT INTO store VALUES (1, %s, %s, 0, 0) ON CONFLICT DO NOTHING",
            [secrets.token_hex(6), secrets.token_bytes(32)],
        )
    return todo


def _unapplied(connection: Connection, steps: list[Migration]) -> list[Migration]:
    if connection.info.parameter_status("server_encoding") != "UTF8":
        raise SchemaError("its encoding is not UTF8")
    tables = {name for (name,) in connection.execute(_TABLES)}
    if "migration" not in tables:
        if tables:
            raise SchemaError("it holds the tables of another application")
        return steps
    try:
        applied = connection.execute("SELECT name, checksum FROM migration ORDER BY name").fetchall()
    except psycopg.errors.UndefinedColumn:
        raise SchemaError("it holds the tables of another application") from None
    return unapplied([(name, checksum) for name, checksum in applied], steps)
