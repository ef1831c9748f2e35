"""`caseload backup` and `caseload restore`: copy a SQLite database."""

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw
import click

from caseload_server import config as settings
from caseload_server.commands.audited import InterruptibleAuditedCommand
from caseload_server.commands.options import FilePath, database_option, file_argument, option
from caseload_server.commands.progress import progress_bar
from caseload_server.commands.standard_streams import print_line
from caseload_server.config import SettingError
from caseload_server.file_mode import file_mode
from caseload_server.store.backends.migrations import SchemaError
from caseload_server.store.portability.export import Progress
from caseload_server.write_faults import NO_SPACE, with_fault, write_fault

_SOURCE_FAULTS: Final[dict[type[Exception], str]] = {
    apsw.NotADBError: "the file is not a SQLite database",
    apsw.CorruptError: "it is damaged",
    apsw.BusyError: "another process holds the file",
}
_METRICS: Final = """\
# HELP caseload_last_backup_time_seconds Start time of the last successful backup, in seconds since 1970
# TYPE caseload_last_backup_time_seconds gauge
caseload_last_backup_time_seconds {:.0f}
"""


@click.command(cls=InterruptibleAuditedCommand)
@file_argument
@database_option
@option("--metrics-file", type=FilePath(), help="Write the time of the backup into this file, for node_exporter.")
def backup(file: Path, database: str, metrics_file: Path | None) -> None:
    """Copy the database into FILE. The server can keep running."""
    from caseload_server.store.backends.sqlite import backup

    if metrics_file:
        settings.check_own_file("--metrics-file", metrics_file, database, file)
    start_time = time.time()
    revision = _copy(backup.backup, ("--database", _sqlite_file(database)), ("FILE", file))
    if metrics_file:
        _write_metrics(metrics_file, start_time)
    print_line(f"revision {revision}", done="the backup is complete")


def _write_metrics(file: Path, backup_time: float) -> None:
    """Replaces a file of the textfile collector, which every user may read. Raises SettingError.

    https://github.com/prometheus/node_exporter#textfile-collector

    Args: backup_time, in seconds since 1970.
    """
    new = file.with_name(f"{file.name}.{os.getpid()}")  # the collector reads only names that end with .prom
    try:
        new.write_text(_METRICS.format(backup_time))
        new.chmod(0o644)
        new.replace(file)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        text = with_fault("cannot be written", write_fault(file, error))
        raise SettingError("--metrics-file", f"{text}; the backup is complete") from None


@click.command(cls=InterruptibleAuditedCommand)
@file_argument
@database_option
def restore(file: Path, database: str) -> None:
    """Create a new database from the backup in FILE."""
    from caseload_server.store.backends.sqlite import backup

    revision = _copy(backup.restore, ("FILE", Path(os.path.realpath(file))), ("--database", _sqlite_file(database)))
    print_line(f"revision {revision}", done="the new database is complete")


def _sqlite_file(url: str) -> Path:
    if settings.is_postgres(url):
        raise SettingError("--database", "is PostgreSQL: use base backups or pg_dump")
    return settings.sqlite_path(url)


def _copy(copy: Callable[[Path, Path, Progress], int], source: tuple[str, Path], target: tuple[str, Path]) -> int:
    """Runs a copy. Returns the number of its revision. Raises SettingError.

    Args: source and target, each the name of a setting and its file.
    """
    os.umask(0o077)
    _check_exists(*source)
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
    return revision


def _check_exists(setting: str, file: Path) -> None:
    try:
        if not stat.S_ISREG(file_mode(file)):
            raise SettingError(setting, "the file does not exist")
    except OSError:
        raise SettingError(setting, "cannot be accessed: no permission, or the path is too long") from None
