"""`caseload backup` and `caseload restore`: copy a SQLite database."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw
import click

from caseload_server import config as settings
from caseload_server.commands.audited import InterruptibleAuditedCommand
from caseload_server.commands.options import database_option, file_argument
from caseload_server.commands.progress import progress_bar
from caseload_server.config import SettingError
from caseload_server.store.backends.migrations import SchemaError
from caseload_server.store.portability.export import Progress
from caseload_server.write_faults import NO_SPACE, with_fault, write_fault

_SOURCE_FAULTS: Final[dict[type[Exception], str]] = {
    apsw.NotADBError: "the file is not a SQLite database",
    apsw.CorruptError: "it is damaged",
    apsw.BusyError: "another process holds the file",
}


@click.command(cls=InterruptibleAuditedCommand)
@file_argument
@database_option
def backup(file: Path, database: str) -> None:
    """Copy the database into FILE. The server can keep running."""
    from caseload_server.store.backends.sqlite import backup

    _copy(backup.backup, ("--database", _sqlite_file(database)), ("FILE", file))


@click.command(cls=InterruptibleAuditedCommand)
@file_argument
@database_option
def restore(file: Path, database: str) -> None:
    """Create a new database from the backup in FILE."""
    from caseload_server.store.backends.sqlite import backup

    _copy(backup.restore, ("FILE", file.resolve()), ("--database", _sqlite_file(database)))


def _sqlite_file(url: str) -> Path:
    if settings.is_postgres(url):
        raise SettingError("--database", "is PostgreSQL: use base backups or pg_dump")
    return settings.sqlite_path(url)


def _copy(copy: Callable[[Path, Path, Progress], int], source: tuple[str, Path], target: tuple[str, Path]) -> None:
    """Runs a copy and prints the number of its revision. Raises SettingError.

    Args: source and target, each the name of a setting and its file.
    """
    os.umask(0o077)
    if not source[1].is_file():
        raise SettingError(source[0], "the file does not exist")
    try:
        with progress_bar("copying", lambda: source[1].stat().st_size) as progress:
            revision = copy(source[1], target[1], progress)
    except FileExistsError as error:
        raise SettingError(target[0], str(error)) from None
    except (SchemaError, apsw.NotADBError, apsw.CorruptError, apsw.BusyError) as error:
        raise SettingError(source[0], _SOURCE_FAULTS.get(type(error), str(error))) from None
    except (apsw.Error, OSError) as error:
        fault = write_fault(target[1], error if isinstance(error, OSError) else None)
        if isinstance(error, apsw.FullError):  # the removal of the copy has made space
            fault = NO_SPACE
        raise SettingError(target[0], with_fault("the copy could not be written", fault)) from None
    click.echo(f"revision {revision}")
