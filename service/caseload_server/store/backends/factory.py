"""A database URL becomes a store; what is wrong with a database is told in words without the driver's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import apsw

from caseload_server.config import Config, SettingError, is_postgres, sqlite_path
from caseload_server.domain.errors import DomainError
from caseload_server.store import RelationshipStore
from caseload_server.store.backends.migrations import Migration, SchemaError
from caseload_server.store.backends.protocol import Database, StoreMetrics
from caseload_server.store.backends.sqlite import migrate as sqlite_migrate
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.backends.timed_database import TimedDatabase

NOT_MIGRATED: Final = "its schema is not up to date: run caseload migrate"


def pending(url: str) -> list[Migration]:
    """The steps that `migrate` would run; changes and creates nothing. Raises SettingError."""
    with usable(url) as (migrations, place):
        steps: list[Migration] = migrations.pending(place)
    return steps


def migrate(url: str) -> list[Migration]:
    """Brings the schema up to date, in a new file where SQLite has none: the steps that ran. Raises SettingError."""
    with usable(url) as (migrations, place):
        steps: list[Migration] = migrations.migrate(place)
    return steps


def open_store(config: Config, clock: Callable[[], int], meter: StoreMetrics | None = None) -> RelationshipStore:
    """The store at a URL. SQLite is migrated where it must be, PostgreSQL by its operator. Raises SettingError.

    Args: meter, where one is to be told of the store's work.
    """
    with usable(config.database) as (migrations, place):
        database = _open(config, migrations, place)
        return RelationshipStore(TimedDatabase(database, meter) if meter else database, clock)


def _open(config: Config, migrations: ModuleType, place: Any) -> Database:
    if not is_postgres(config.database):
        migrations.migrate(place)
        return SqliteDatabase(place)
    if migrations.pending(place):
        raise SchemaError(NOT_MIGRATED)
    from caseload_server.store.backends.postgres.database import PostgresDatabase

    return PostgresDatabase(place, connections=config.pool_size)


@contextmanager
def usable(url: str) -> Iterator[tuple[ModuleType, Any]]:
    """The migrations of the database's kind, and its place as they take it. Raises SettingError."""
    if not is_postgres(url):
        try:
            yield sqlite_migrate, sqlite_path(url)
        except (SchemaError, apsw.Error) as error:
            raise unusable(error) from None
        except DomainError as error:
            raise SettingError("--database", error.message) from None
        return
    try:
        import psycopg

        from caseload_server.store.backends.postgres import migrate as postgres_migrate
    except ImportError:
        raise SettingError("--database", "PostgreSQL needs the extra caseload-server[postgres]") from None
    try:
        yield postgres_migrate, url
    except SchemaError as error:
        raise unusable(error) from None
    except DomainError as error:
        raise SettingError("--database", error.message) from None
    except psycopg.Error as error:
        if isinstance(error, psycopg.ProgrammingError) and not error.sqlstate:
            text = "is not a PostgreSQL URL"
        else:
            text = f"PostgreSQL cannot be reached, or refuses (SQLSTATE {error.sqlstate or 'none'})"
        raise SettingError("--database", text) from None


def unusable(error: SchemaError | apsw.Error) -> SettingError:
    """What is wrong with a database, without the driver's words."""
    match error:
        case SchemaError():
            text = str(error)
        case apsw.NotADBError():
            text = "the file is not a SQLite database"
        case apsw.ReadOnlyError() | apsw.CantOpenError() | apsw.PermissionsError():
            text = "the file or its folder cannot be written"
        case apsw.BusyError():
            text = "another process holds the file"
        case _:
            text = f"SQLite cannot use the file ({type(error).__name__})"
    return SettingError("--database", text)
