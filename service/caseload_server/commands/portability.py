"""`caseload export`, `import` and `verify`: everything in a store as JSON LogSink, out and in again, and its rules."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click

from caseload_server import config as settings
from caseload_server.commands.options import STANDARD, database_option, file_argument
from caseload_server.commands.progress import progress_bar
from caseload_server.commands.signals import InterruptibleCommand
from caseload_server.config import SettingError
from caseload_server.store.backends.migrations import SchemaError, migrations
from caseload_server.store.backends.protocol import Database, Transaction
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.portability.import_loader import Loading


@click.command(name="export", cls=InterruptibleCommand)
@file_argument
@database_option
def export_command(file: Path, database: str) -> None:
    """Write everything into FILE as JSON LogSink, while it is served; - is the standard output."""
    from caseload_server.store.portability import export

    os.umask(0o077)
    with reading(database) as transaction, progress_bar("exporting", partial(export.count, transaction)) as progress:
        try:
            with _written(file) as lines:
                export.export(transaction, lines.write, progress)
        except FileExistsError as error:
            raise SettingError("FILE", str(error)) from None
        except OSError:
            raise SettingError("FILE", "could not be written") from None


@contextmanager
def _written(file: Path) -> Iterator[BinaryIO]:
    from caseload_server.store.atomic_file import new_file

    if file == STANDARD:
        with open(sys.stdout.fileno(), "wb", closefd=False) as lines:
            yield lines
    else:
        with new_file(file) as part, part.open("wb") as lines:
            yield lines


@click.command(name="import", cls=InterruptibleCommand)
@file_argument
@database_option
def import_command(file: Path, database: str) -> None:
    """Fill an empty database from the export in FILE, all or nothing; - is the standard input.

    PostgreSQL is migrated before, and served afterwards. On SQLite a new file is made.
    """
    from caseload_server.store.portability import import_loader
    from caseload_server.store.portability.import_parser import ImportRefused
    from caseload_server.store.portability.import_process import reading as reading_lines

    os.umask(0o077)
    try:
        with (
            _read(file) as lines,
            loading_into(database) as (loading, schema),
            reading_lines(lines, schema) as batches,
            progress_bar("importing", lambda: os.fstat(lines.fileno()).st_size) as progress,
        ):
            digest = import_loader.load(batches, loading, progress)
    except (ImportRefused, import_loader.RuleBroken) as error:
        raise SettingError("FILE", str(error)) from None
    except FileExistsError as error:
        raise SettingError("--database", str(error)) from None
    except OSError:
        raise SettingError("--database", "could not be written, or FILE could not be read") from None
    click.echo(f"digest: {digest}")


def _read(file: Path) -> BinaryIO:
    if file == STANDARD:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    try:
        return file.open("rb")
    except OSError:
        raise SettingError("FILE", "there is no such file, or it cannot be read") from None


@click.command(cls=InterruptibleCommand)
@database_option
def verify(database: str) -> int:
    """Look for broken rules, while it is served; exit code 1 where there are any. The last line is a digest."""
    from caseload_server.store.portability import export, verify

    with reading(database) as transaction, progress_bar("verifying", partial(export.count, transaction)) as progress:
        contents = verify.Contents(transaction)
        broken = [*verify.broken_rules(transaction), *contents.read(progress)]
        if not settings.is_postgres(database):
            broken += verify.damage(transaction)
    for rule, count, ids in broken:
        click.echo(f"broken: {rule}: {count} ({', '.join(ids)})")
    click.echo(", ".join(f"{count} {name}" for name, count in contents.tally.rows.items()))
    click.echo(f"digest: {contents.tally.digest}")
    return 1 if broken else 0


@contextmanager
def reading(url: str) -> Iterator[Transaction]:
    """One state of a database that is there and up to date. Raises SettingError."""
    from caseload_server.store.backends.factory import NOT_MIGRATED, usable

    is_postgres = settings.is_postgres(url)
    with usable(url) as (steps, place):
        if not is_postgres and not place.exists():
            raise SettingError("--database", "there is no such file")
        if steps.pending(place):
            raise SchemaError(NOT_MIGRATED)
        database = _postgres(place) if is_postgres else SqliteDatabase(place)
        try:
            with database.reading() as transaction:
                yield transaction
        finally:
            database.close()


def _postgres(url: str) -> Database:
    from caseload_server.store.backends.postgres.bulk_load import unhurried
    from caseload_server.store.backends.postgres.database import PostgresDatabase

    return PostgresDatabase(unhurried(url))


@contextmanager
def loading_into(url: str) -> Iterator[tuple[Loading, str]]:
    """The empty database to fill, and the newest step of its schema. Raises SettingError, and as the loading does."""
    from caseload_server.store.backends.factory import NOT_MIGRATED, usable

    is_postgres = settings.is_postgres(url)
    fill: Callable[[Any], AbstractContextManager[Loading]]
    with usable(url) as (steps, place):
        if is_postgres:
            from caseload_server.store.backends.postgres import bulk_load as postgres_bulk_load

            if steps.pending(place):
                raise SchemaError(NOT_MIGRATED)
            fill = postgres_bulk_load.loading
        else:
            from caseload_server.store.backends.sqlite import bulk_load as sqlite_bulk_load

            fill = sqlite_bulk_load.loading
        with fill(place) as loading:
            yield loading, migrations("postgres" if is_postgres else "sqlite")[-1].name
