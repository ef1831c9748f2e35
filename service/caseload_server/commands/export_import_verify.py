"""`caseload export`, `import` and `verify`: the content of a store as JSON Lines, and a check of its rules."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click

from caseload_server import config as settings
from caseload_server.commands.audited import InterruptibleAuditedCommand
from caseload_server.commands.options import STANDARD, database_option, file_argument
from caseload_server.commands.progress import progress_bar
from caseload_server.commands.signals import InterruptibleCommand
from caseload_server.commands.snapshots import open_snapshot
from caseload_server.commands.standard_streams import print_line
from caseload_server.config import SettingError
from caseload_server.domain.results import LogHead
from caseload_server.store.backends.migrations import SchemaError, migrations
from caseload_server.store.portability.import_loader import BulkLoad
from caseload_server.write_faults import with_fault, write_fault

_HEAD = re.compile("[0-9]{1,18}:[0-9a-f]{64}")


@click.command(name="export", cls=InterruptibleAuditedCommand)
@file_argument
@database_option
def export_command(file: Path, database: str) -> None:
    """Write the whole store into FILE as JSON Lines. FILE - is standard output. The server can keep running."""
    from caseload_server.store.portability import export

    os.umask(0o077)
    with (
        open_snapshot(database) as transaction,
        progress_bar("exporting", partial(export.count, transaction)) as progress,
    ):
        try:
            with _open_output(file) as lines:
                export.export(transaction, lines.write, progress)
        except FileExistsError as error:
            raise SettingError("FILE", str(error)) from None
        except OSError as error:
            fault = write_fault(file, error)
            raise SettingError("FILE", with_fault("could not be written", fault)) from None


@contextmanager
def _open_output(file: Path) -> Iterator[BinaryIO]:
    from caseload_server.store.atomic_file import atomic_file

    if file == STANDARD:
        with open(sys.stdout.fileno(), "wb", closefd=False) as lines:
            yield lines
    else:
        with atomic_file(file) as part, part.open("wb") as lines:
            yield lines


@click.command(name="import", cls=InterruptibleAuditedCommand)
@file_argument
@database_option
def import_command(file: Path, database: str) -> None:
    """Import the export in FILE into an empty database, all or nothing. FILE - is standard input.

    The database must be migrated before, and must not be served yet. A SQLite file that does not exist is created.
    FILE may be compressed with gzip.
    """
    from caseload_server.store.portability import import_loader
    from caseload_server.store.portability.import_lines import ImportRefused
    from caseload_server.store.portability.import_process import read_batches

    os.umask(0o077)
    try:
        with (
            _open_input(file) as lines,
            open_bulk_load(database) as (loading, schema),
            read_batches(lines, schema) as batches,
            progress_bar("importing", lambda: os.fstat(lines.fileno()).st_size) as progress,
        ):
            digest = import_loader.load(batches, loading, progress)
    except (ImportRefused, import_loader.ConstraintViolation) as error:
        raise SettingError("FILE", str(error)) from None
    except FileExistsError as error:
        raise SettingError("--database", str(error)) from None
    except OSError:
        fault = "" if settings.is_postgres(database) else write_fault(settings.sqlite_path(database))
        text = with_fault("could not be written, or FILE could not be read", fault)
        raise SettingError("--database", text) from None
    print_line(f"digest: {digest}", done="the import is complete")


def _open_input(file: Path) -> BinaryIO:
    if file == STANDARD:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    try:
        return file.open("rb")
    except OSError:
        raise SettingError("FILE", "the file does not exist or cannot be read") from None


@click.command(cls=InterruptibleCommand)
@database_option
@click.option(
    "--head",
    "heads",
    metavar="REVISION:HASH",
    multiple=True,
    help="A head of the change log that was kept elsewhere. Can be repeated.",
)
def verify(database: str, heads: tuple[str, ...]) -> int:
    """Check the store's rules. The server can keep running.

    The exit code is 1 if a rule is broken. The last line is a digest of the content.
    """
    from caseload_server.store.portability import export, verify
    from caseload_server.store.portability.chain_check import PrunedHead, broken_chain
    from caseload_server.store.portability.version_check import broken_versions

    kept = [_parse_head(text) for text in heads]
    pruned: PrunedHead | None = None
    with (
        open_snapshot(database) as transaction,
        progress_bar("verifying", partial(export.count, transaction)) as progress,
    ):
        contents = verify.ContentCheck(transaction)
        broken = [*verify.broken_rules(transaction), *contents.read(progress), *broken_versions(transaction)]
        try:
            broken += broken_chain(transaction, kept)
        except PrunedHead as error:  # who moved the oldest revision may want to hide what else is broken
            pruned = error
            broken += broken_chain(transaction, [head for head in kept if head.revision >= error.oldest_revision])
        if not settings.is_postgres(database):
            broken += verify.file_damage(transaction)
    for rule, count, ids in broken:
        print_line(f"broken: {rule}: {count} ({', '.join(ids)})")
    print_line(", ".join(f"{count} {name}" for name, count in contents.content_digest.row_counts.items()))
    print_line(f"digest: {contents.content_digest.digest}")
    if pruned:
        raise SettingError("--head", str(pruned))
    return 1 if broken else 0


def _parse_head(text: str) -> LogHead:
    """Returns a head as `caseload log head` prints it. Raises SettingError."""
    if not _HEAD.fullmatch(text):
        raise SettingError("--head", "must be REVISION:HASH, as caseload log head prints it")
    revision, _, digest = text.partition(":")
    return LogHead(int(revision), bytes.fromhex(digest))


@contextmanager
def open_bulk_load(url: str) -> Iterator[tuple[BulkLoad, str]]:
    """Opens a bulk load into an empty database.

    Yields: the bulk load, and the name of the newest migration. Raises SettingError, and the errors of the bulk load.
    """
    from caseload_server.store.backends.factory import NOT_MIGRATED, backend_for

    is_postgres = settings.is_postgres(url)
    fill: Callable[[Any], AbstractContextManager[BulkLoad]]
    with backend_for(url) as (migrate_module, location):
        if (is_postgres or location.exists()) and migrate_module.pending(location):
            raise SchemaError(NOT_MIGRATED)
        if is_postgres:
            from caseload_server.store.backends.postgres import bulk_load as postgres_bulk_load

            fill = postgres_bulk_load.bulk_load
        else:
            from caseload_server.store.backends.sqlite import bulk_load as sqlite_bulk_load

            fill = sqlite_bulk_load.bulk_load
        with fill(location) as loading:
            yield loading, migrations("postgres" if is_postgres else "sqlite")[-1].name
