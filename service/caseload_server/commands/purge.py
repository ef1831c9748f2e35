"""`caseload purge`: erases deleted records, or old changes, for good."""

from functools import partial
from pathlib import Path

import apsw
import click

from caseload_server import config as settings
from caseload_server.commands.options import database_option
from caseload_server.commands.progress import progress_bar
from caseload_server.commands.signals import InterruptibleCommand, held_back
from caseload_server.config import Config, SettingError
from caseload_server.domain.errors import DomainError
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore


@click.command(cls=InterruptibleCommand)
@database_option
@click.option("--deleted-before", metavar="TIME", help="Erase who was deleted before a time (RFC 3339), or 30d ago.")
@click.option("--changes-before", metavar="TIME", help="Erase the change log up to a time (RFC 3339), or 30d ago.")
@click.option("--vacuum", is_flag=True, help="Write the SQLite file anew also while it is served: writers wait.")
def purge(database: str, deleted_before: str | None, changes_before: str | None, vacuum: bool) -> None:  # noqa: FBT001
    """Erase deleted people, or the change log up to a time, for good, while it is served."""
    from caseload_server.clock import now_us
    from caseload_server.store.backends.factory import open_store

    if deleted_before is None and changes_before is None:
        raise SettingError("--deleted-before", "is required, or --changes-before")
    if vacuum and (deleted_before is None or settings.is_postgres(database)):
        raise SettingError("--vacuum", "needs --deleted-before, and a SQLite file: PostgreSQL does it by itself")
    deleted_us, changes_us = (
        None if text is None else min(settings.moment(flag, text, now_us()), now_us())
        for flag, text in (("--deleted-before", deleted_before), ("--changes-before", changes_before))
    )
    if not (settings.is_postgres(database) or settings.sqlite_path(database).exists()):
        raise SettingError("--database", "there is no such file")
    may_leave_traces = deleted_us is not None and not settings.is_postgres(database)
    store = open_store(Config(database=database), now_us)
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
        with progress_bar("purging", count) as progress, held_back() as let_in:
            for kind in kinds:
                for erased in store.purge_people(kind, before_us):
                    gone[kind.name] += erased.records
                    gone["assignment"] += erased.assignments
                    progress(erased.records)
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
