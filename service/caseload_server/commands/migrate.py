"""`caseload migrate`: migrates the schema, then makes the words and keys of records."""

import os

import click

from caseload_server.commands.audited import AuditedCommand
from caseload_server.commands.options import database_option
from caseload_server.commands.progress import progress_bar
from caseload_server.commands.snapshots import open_any_snapshot
from caseload_server.commands.standard_streams import print_line, print_notice


@click.command(name="migrate", cls=AuditedCommand)
@database_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="List the pending migrations without applying them, and the records with the same identifier as another one.",
)
def migrate_command(database: str, dry_run: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Migrate the schema of the database to the newest version.

    Then make the words and keys of records that an older release wrote, which searches need. The server can keep
    running. If it is interrupted, the next start continues.
    """
    os.umask(0o077)
    from caseload_server.store.backends import factory

    migrations = factory.pending(database) if dry_run else factory.migrate(database)
    for migration in migrations:
        print_line(migration.name)
    if dry_run:
        _list_doubles(database)
    elif made := _make_keys(database):
        print_notice(f"words and keys of {made} records made")
    if not migrations:
        print_notice("up to date")


def _make_keys(database: str) -> int:
    """Makes missing words and keys. Returns the number of records."""
    from caseload_server.store.backends import factory

    made = 0
    with factory.open_key_catch_up(database) as catch_up, progress_bar("keys", catch_up.count) as progress:
        for count in catch_up.run():
            made += count
            progress(count)
    return made


def _list_doubles(database: str) -> None:
    from caseload_server.store.portability.double_identifiers import find_doubles

    with open_any_snapshot(database) as transaction:
        for kind, holder_id, other_id in find_doubles(transaction) if transaction else ():
            print_line(f"same identifier: {kind} {other_id} as {kind} {holder_id}, which is older and keeps its key")
