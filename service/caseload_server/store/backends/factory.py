"""Opens the store at a database URL. Database failures become SettingErrors with a text of our own."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import apsw

from caseload_server.config import Config, SettingError, is_postgres, sqlite_name, sqlite_path
from caseload_server.domain.errors import DomainError, StoreUnavailable
from caseload_server.private_files import data_files_fault
from caseload_server.store import RelationshipStore
from caseload_server.store.backends.migrations import Migration, SchemaError
from caseload_server.store.backends.protocol import Database, StoreMetrics
from caseload_server.store.backends.sqlite import migrate as sqlite_migrate
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.backends.timed_database import TimedDatabase
from caseload_server.store.key_catch_up import KeyCatchUp
from caseload_server.write_faults import NO_SPACE, with_fault, write_fault

if TYPE_CHECKING:
    import psycopg

NOT_MIGRATED: Final = "its schema is not up to date: run caseload migrate"
OLDER_BACKUP: Final = f"{NOT_MIGRATED}. If it is a backup, restore it first, and migrate the restored file"


def pending(url: str) -> list[Migration]:
    """Returns the steps that `migrate` would run. Changes and creates nothing. Raises SettingError."""
    with backend_for(url) as (migrate_module, location):
        steps: list[Migration] = migrate_module.pending(location)
    return steps


def migrate(url: str) -> list[Migration]:
    """Runs the pending steps and returns them. Creates a SQLite file that does not exist. Raises SettingError."""
    with backend_for(url) as (migrate_module, location):
        steps: list[Migration] = migrate_module.migrate(location)
    return steps


def open_store(
    config: Config, clock: Callable[[], int], *metrics: StoreMetrics, monotonic: Callable[[], float] = time.monotonic
) -> RelationshipStore:
    """Opens the store at `config.database`. SQLite is migrated first; PostgreSQL is migrated by its operator.

    Args: clock, returns microseconds since 1970 (UTC); metrics, each receives the durations of reads and writes;
    monotonic, a clock that never steps, in seconds.
    Raises SettingError.
    """
    with backend_for(config.database) as (migrate_module, location):
        database = _open_database(config, migrate_module, location)
        for one in metrics:
            database = TimedDatabase(database, one)
        return RelationshipStore(database, clock, monotonic)


@contextmanager
def open_key_catch_up(url: str) -> Iterator[KeyCatchUp]:
    """Opens a migrated database to make words and keys. Raises SettingError, also within the with block."""
    with backend_for(url) as (_, location), closing(connect(url, location)) as database:
        yield KeyCatchUp(database)


def connect(url: str, location: Any) -> Database:
    """Returns the database at a location, which is as backend_for yields it."""
    if not is_postgres(url):
        return SqliteDatabase(location, sqlite_name(url))
    from caseload_server.store.backends.postgres.database import PostgresDatabase

    return PostgresDatabase(location)


def _open_database(config: Config, migrate_module: ModuleType, location: Any) -> Database:
    if not is_postgres(config.database):
        if fault := data_files_fault(*(Path(f"{location}{suffix}") for suffix in ("", "-wal", "-shm"))):
            raise SettingError("--database", fault)
        migrate_module.migrate(location)
        return connect(config.database, location)
    if migrate_module.pending(location):
        raise SchemaError(NOT_MIGRATED)
    from caseload_server.store.backends.postgres.database import PostgresDatabase

    database = PostgresDatabase(location, connections=config.pool_size)
    database.open()
    return database


@contextmanager
def backend_for(url: str) -> Iterator[tuple[ModuleType, Any]]:
    """Yields the backend's `migrate` module and the location that it takes: a file path, or the URL.

    Errors of the database inside the with block are raised as SettingError.
    """
    if not is_postgres(url):
        try:
            yield sqlite_migrate, sqlite_path(url)
        except (SchemaError, apsw.Error) as error:
            raise database_setting_error(error, sqlite_path(url)) from None
        except DomainError as error:
            raise domain_setting_error(error) from None
        return
    try:
        import psycopg

        from caseload_server.store.backends.postgres import migrate as postgres_migrate
    except ImportError:
        raise SettingError("--database", "PostgreSQL needs the extra caseload-server[postgres]") from None
    try:
        yield postgres_migrate, url
    except SchemaError as error:
        raise database_setting_error(error) from None
    except DomainError as error:
        raise domain_setting_error(error) from None
    except psycopg.Error as error:
        raise SettingError("--database", _postgres_text(error, url)) from None


def domain_setting_error(error: DomainError) -> SettingError:
    """Describes a failure of an open database to the operator, who may see its details."""
    return SettingError("--database", (isinstance(error, StoreUnavailable) and error.detail) or error.message)


def _postgres_text(error: "psycopg.Error", url: str) -> str:
    import psycopg

    from caseload_server.store.backends.postgres.connection import SessionRefused
    from caseload_server.store.backends.postgres.error_text import one_line

    if isinstance(error, psycopg.ProgrammingError) and not error.sqlstate:
        return _url_fault(url)
    if isinstance(error, SessionRefused):
        return str(error)
    return f"PostgreSQL cannot be reached, or refuses: {one_line(error, url)}"


def _url_fault(url: str) -> str:
    """Returns what is wrong with a URL that psycopg rejects. Its own text would quote the value."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "is not a PostgreSQL URL, or has a parameter that libpq does not know"
    return "a parameter of the URL, or a variable such as PGCONNECT_TIMEOUT, has a value that libpq cannot use"


def database_setting_error(error: SchemaError | apsw.Error, path: Path | None = None) -> SettingError:
    """Describes a database that cannot be used. Leaves out the driver's text, which may quote rows.

    Args: path, the file of SQLite, which is looked at to say more.
    """
    match error:
        case SchemaError():
            text = str(error)
        case apsw.NotADBError():
            text = "the file is not a SQLite database"
        case apsw.ReadOnlyError() | apsw.CantOpenError() | apsw.PermissionsError():
            text = with_fault("the file or its folder cannot be written", write_fault(path) if path else "")
        case apsw.FullError():
            text = with_fault("the file cannot be written", NO_SPACE)
        case apsw.BusyError():
            text = "another process holds the file"
        case _:
            text = with_fault(f"SQLite cannot use the file ({type(error).__name__})", write_fault(path) if path else "")
    return SettingError("--database", text)
