"""`caseload purge`: permanently erases deleted records, or old changes."""

from functools import partial
from pathlib import Path

import apsw
import click

from caseload_server import config as settings
from caseload_server.commands.audited import InterruptibleAuditedCommand
from caseload_server.commands.options import database_option
from caseload_server.commands.progress import progress_bar
from caseload_server.commands.signals import defer_signals
from caseload_server.config import Config, SettingError
from caseload_server.domain.errors import DomainError
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore


@click.command(cls=InterruptibleAuditedCommand)
@database_option
@click.option(
    "--deleted-before",
    metavar="TIME",
    help="Erase records deleted before a time (RFC 3339) or age (30d).",
)
@click.option("--changes-before", metavar="TIME", help="Erase changes made before a time (RFC 3339) or age (30d).")
@click.option("--vacuum", is_flag=True, help="Vacuum the SQLite file even while a server uses it. Writes wait.")
def purge(database: str, deleted_before: str | None, changes_before: str | None, vacuum: bool) -> None:  # noqa: FBT001
    """Permanently erase deleted therapists and patients, or old changes. The server can keep running."""
    from caseload_server.clock import now_us
    from caseload_server.store.backends.factory import open_store

    if deleted_before is None and changes_before is None:
        raise SettingError("--deleted-before", "is required, or --changes-before")
    if vacuum and (deleted_before is None or settings.is_postgres(database)):
        raise SettingError("--vacuum", "needs --deleted-before and a SQLite database: PostgreSQL vacuums by itself")
    deleted_us, changes_us = (
        None if text is None else min(settings.parse_time(flag, text, now_us()), now_us())
        for flag, text in (("--deleted-before", deleted_before), ("--changes-before", changes_before))
    )
    if not (settings.is_postgres(database) or settings.sqlite_path(database).exists()):
        raise SettingError("--database", "the file does not exist")
    may_leave_traces = deleted_us is not None and not settings.is_postgres(database)
    store = open_store(Config(database=database), now_us)
    try:
        if deleted_us is not None:
            _purge_records(store, deleted_us)
            _report_future(store, now_us())
        if changes_us is not None:
            _purge_changes(store, changes_us)
    except DomainError as error:
        raise SettingError("--database", error.message) from None
    except KeyboardInterrupt:
        if may_leave_traces:
            click.echo("caseload: the file may still contain traces of erased records: run purge again", err=True)
        raise
    finally:
        store.close()
    if may_leave_traces:
        _vacuum(settings.sqlite_path(database), even_in_use=vacuum)


def _vacuum(path: Path, *, even_in_use: bool) -> None:
    """Removes traces of erased records from a SQLite file, or prints how to do that when the file is in use."""
    from caseload_server.store.backends.factory import database_setting_error
    from caseload_server.store.backends.sqlite import vacuum

    try:
        if even_in_use or not vacuum.is_in_use(path):
            vacuum.vacuum(path)
        else:
            problem = "the file is in use and may still contain traces of erased records"
            click.echo(f"caseload: {problem}: run purge with --vacuum, or again when it is not in use", err=True)
    except apsw.Error as error:
        raise database_setting_error(error) from None


def _purge_records(store: RelationshipStore, before_us: int) -> None:
    """Erases records in batches. Prints the numbers of erased records at the end, even if it is interrupted."""
    kinds = (PATIENT, THERAPIST)
    erased = dict.fromkeys((*(kind.name for kind in kinds), "assignment"), 0)
    try:
        count = partial(sum, (store.count_purgeable(kind, before_us) for kind in kinds))
        with progress_bar("purging", count) as progress, defer_signals() as deliver_signals:
            for kind in kinds:
                for batch in store.purge_records(kind, before_us):
                    erased[kind.name] += batch.records
                    erased["assignment"] += batch.assignments
                    progress(batch.records)
                    deliver_signals()
    finally:
        click.echo(", ".join(f"{count} {name}s" for name, count in erased.items()) + " purged")


def _report_future(store: RelationshipStore, time_us: int) -> None:
    """Prints how many records a clock that was ahead has deleted: their age never reaches the limit in time."""
    if count := sum(store.count_deleted_after(kind, time_us) for kind in (PATIENT, THERAPIST)):
        text = f"{count} deleted records stay: the clock was ahead when they were deleted"
        click.echo(f"caseload: {text}: undelete and delete them again, or wait", err=True)


def _purge_changes(store: RelationshipStore, before_us: int) -> None:
    """Erases change sets in batches. Prints their number at the end, even if it is interrupted."""
    erased = 0

    def add(count: int) -> None:
        nonlocal erased
        erased += count
        deliver_signals()

    try:
        with defer_signals() as deliver_signals:
            store.purge_changes(before_us, add)
    finally:
        click.echo(f"{erased} change sets purged")
