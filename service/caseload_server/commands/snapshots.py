"""Snapshots of the databases that commands read."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

from caseload_server import config as settings
from caseload_server.config import SettingError
from caseload_server.store.backends.migrations import SchemaError, migrations
from caseload_server.store.backends.protocol import Transaction
from caseload_server.store.backends.sqlite.reading import read_snapshot


@contextmanager
def open_snapshot(url: str) -> Iterator[Transaction]:
    """Opens a snapshot of an existing, migrated database. Raises SettingError."""
    from caseload_server.store.backends.factory import NOT_MIGRATED, OLDER_BACKUP, backend_for

    is_postgres = settings.is_postgres(url)
    with backend_for(url) as (migrate_module, location):
        if not is_postgres and not location.exists():
            raise SettingError("--database", "the file does not exist")
        if pending := migrate_module.pending(location):
            is_foreign = not is_postgres and pending == migrations("sqlite")
            older = NOT_MIGRATED if is_postgres else OLDER_BACKUP
            raise SchemaError("it holds no caseload database" if is_foreign else older)
        with _snapshot_of(url, location) as transaction:
            yield transaction


@contextmanager
def open_any_snapshot(url: str) -> Iterator[Transaction | None]:
    """Opens a snapshot of a database with the schema of this version or an older one. Raises SettingError.

    Yields: None for a database without a schema.
    """
    from caseload_server.store.backends.factory import backend_for

    all_steps = migrations("postgres" if settings.is_postgres(url) else "sqlite")
    with backend_for(url) as (migrate_module, location):
        if migrate_module.pending(location) == all_steps:
            yield None
            return
        with _snapshot_of(url, location) as transaction:
            yield transaction


def _snapshot_of(url: str, location: Any) -> AbstractContextManager[Transaction]:
    return _postgres_snapshot(location) if settings.is_postgres(url) else read_snapshot(location)


@contextmanager
def _postgres_snapshot(url: str) -> Iterator[Transaction]:
    from caseload_server.store.backends.postgres.connection import WITHOUT_TIMEOUTS
    from caseload_server.store.backends.postgres.database import PostgresDatabase

    with closing(PostgresDatabase(url, reads=WITHOUT_TIMEOUTS)) as database, database.snapshot() as transaction:
        yield transaction
