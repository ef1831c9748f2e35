"""The commands that look after the data."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import apsw
import click

from caseload_server import config as settings
from caseload_server.config import Config, SettingError
from caseload_server.domain.errors import DomainError
from caseload_server.commands.signals import InterruptibleCommand, held_back
from caseload_server.commands.options import STANDARD, database_option, file_argument
from caseload_server.store import PATIENT, RelationshipStore, THERAPIST
from caseload_server.store.backends.protocol import Database, Transaction
from caseload_server.store.portability.export import Progress
from caseload_server.store.portability.import_loader import Loading
from caseload_server.store.backends.migrations import SchemaError, migrations
from caseload_server.store.backends.sqlite.database import SqliteDatabase


@click.command(name="migrate")
@database_option
@click.option("--dry-run", is_flag=True, help="List what would run, and change nothing.")
def migrate_command(database: str, dry_run: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Bring the database's schema up to date."""
    os.umask(0o077)
    from caseload_server.store.backends import factory

    steps = factory.pending(database) if dry_run else factory.migrate(database)
    for step in steps:
        click.echo(step.name)
    if not steps:
        click.echo("up to date", err=True)


@click.command(cls=InterruptibleCommand)
@file_argument
@database_option
def backup(file: Path, database: str) -> None:
    """Copy the database into FILE, while it is served."""
    from caseload_server.store.backends.sqlite import backup

    _copy(backup.backup, ("--database", _sqlite_file(database)), ("FILE", file))


@click.command(cls=InterruptibleCommand)
@file_argument
@database_option
def restore(file: Path, database: str) -> None:
    """Make a new database of the copy in FILE."""
    from caseload_server.store.backends.sqlite import backup

    _copy(backup.restore, ("FILE", file), ("--database", _sqlite_file(database)))


def _sqlite_file(url: str) -> Path:
    if settings.is_postgres(url):
        raise SettingError("--database", "is PostgreSQL, which has its own means: base backups, or pg_dump")
    return settings.sqlite_path(url)


def _copy(copy: Callable[[Path, Path, Progress], int], source: tuple[str, Path], target: tuple[str, Path]) -> None:
    """Runs a copy; source and target are each a setting and its file."""
    os.umask(0o077)
    if not source[1].is_file():
        raise SettingError(source[0], "there is no such file")
    try:
        with _progress("copying", lambda: source[1].stat().st_size) as progress:
            revision = copy(source[1], target[1], progress)
    except FileExistsError as error:
        raise SettingError(target[0], str(error)) from None
    except (SchemaError, apsw.NotADBError) as error:
        text = str(error) if isinstance(error, SchemaError) else "the file is not a SQLite database"
        raise SettingError(source[0], text) from None
    except (apsw.Error, OSError):
        raise SettingError(target[0], "the copy could not be written") from None
    click.echo(f"revision {revision}")


@click.command(name="export", cls=InterruptibleCommand)
@file_argument
@database_option
def export_command(file: Path, database: str) -> None:
    """Write everything into FILE as JSON Lines, while it is served; - is the standard output."""
    from caseload_server.store.portability import export

    os.umask(0o077)
    with reading(database) as transaction, _progress("exporting", partial(export.count, transaction)) as progress:
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
            _progress("importing", lambda: os.fstat(lines.fileno()).st_size) as progress,
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

    with reading(database) as transaction, _progress("verifying", partial(export.count, transaction)) as progress:
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
    from caseload_server.store.backends.postgres.database import PostgresDatabase
    from caseload_server.store.backends.postgres.bulk_load import unhurried

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


@contextmanager
def _progress(label: str, count: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for as long as the with block; count is of all there is to do."""
    is_shown = sys.stderr.isatty()
    with click.progressbar(length=count() if is_shown else 1, label=label, file=sys.stderr, hidden=not is_shown) as bar:
        yield bar.update


@click.command(cls=InterruptibleCommand)
@database_option
@click.option("--deleted-before", metavar="TIME", help="Erase who was deleted before a time (RFC 3339), or 30d ago.")
@click.option("--changes-before", metavar="TIME", help="Erase the change log up to a time (RFC 3339), or 30d ago.")
@click.option("--vacuum", is_flag=True, help="Write the SQLite file anew also while it is served: writers wait.")
def purge(database: str, deleted_before: str | None, changes_before: str | None, vacuum: bool) -> None:  # noqa: FBT001
    """Erase deleted people, or the change log up to a time, for good, while it is served."""
    from caseload_server.store.backends.factory import open_store
    from caseload_server.rpc.server import clock

    if deleted_before is None and changes_before is None:
        raise SettingError("--deleted-before", "is required, or --changes-before")
    if vacuum and (deleted_before is None or settings.is_postgres(database)):
        raise SettingError("--vacuum", "needs --deleted-before, and a SQLite file: PostgreSQL does it by itself")
    deleted_us, changes_us = (
        None if text is None else min(settings.moment(flag, text, clock()), clock())
        for flag, text in (("--deleted-before", deleted_before), ("--changes-before", changes_before))
    )
    if not (settings.is_postgres(database) or settings.sqlite_path(database).exists()):
        raise SettingError("--database", "there is no such file")
    may_leave_traces = deleted_us is not None and not settings.is_postgres(database)
    store = open_store(Config(database=database), clock)
    try:
        if deleted_us is not None:
            _purge_people(store, deleted_us)
        if changes_us is not None:
            _purge_changes(store, changes_us)
    except DomainError as error:
        raise SettingError("--database", error.message) from None
    except KeyboardInterrupt:
        if may_leave_traces:
            click.echo("caseload: the file may hold traces of what was erased: purge again", err=True)
        raise
    finally:
        store.close()
    if may_leave_traces:
        _leave_no_traces(settings.sqlite_path(database), while_served=vacuum)


def _leave_no_traces(path: Path, *, while_served: bool) -> None:
    from caseload_server.store.backends.factory import unusable
    from caseload_server.store.backends.sqlite import vacuum

    try:
        if while_served or not vacuum.is_in_use(path):
            vacuum.vacuum(path)
        else:
            text = "the file is in use and may hold traces of what was erased: purge with --vacuum, or once it is not"
            click.echo(f"caseload: {text}", err=True)
    except apsw.Error as error:
        raise unusable(error) from None


def _purge_people(store: RelationshipStore, before_us: int) -> None:
    """Erases them bit by bit, and says at the end, or where it is broken off, how many went."""
    kinds = (PATIENT, THERAPIST)
    gone = dict.fromkeys((*(kind.name for kind in kinds), "assignment"), 0)
    try:
        count = partial(sum, (store.purge_due(kind, before_us) for kind in kinds))
        with _progress("purging", count) as progress, held_back() as let_in:
            for kind in kinds:
                for erased in store.purge_people(kind, before_us):
                    gone[kind.name] += erased.people
                    gone["assignment"] += erased.assignments
                    progress(erased.people)
                    let_in()
    finally:
        click.echo(", ".join(f"{count} {name}s" for name, count in gone.items()) + " purged")


def _purge_changes(store: RelationshipStore, before_us: int) -> None:
    """As the people."""
    gone = 0

    def seen(count: int) -> None:
        nonlocal gone
        gone += count
        let_in()

    try:
        with held_back() as let_in:
            store.purge_changes(before_us, seen)
    finally:
        click.echo(f"{gone} change sets purged")


COMMANDS = (migrate_command, backup, restore, export_command, import_command, verify, purge)
