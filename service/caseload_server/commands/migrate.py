"""`caseload migrate`: migrates the schema."""

import os

import click

from caseload_server.commands.audited import AuditedCommand
from caseload_server.commands.options import database_option
from caseload_server.commands.standard_streams import print_line, print_notice


@click.command(name="migrate", cls=AuditedCommand)
@database_option
@click.option("--dry-run", is_flag=True, help="List the pending migrations without applying them.")
def migrate_command(database: str, dry_run: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Migrate the schema of the database to the newest version."""
    os.umask(0o077)
    from caseload_server.store.backends import factory

    migrations = factory.pending(database) if dry_run else factory.migrate(database)
    for migration in migrations:
        print_line(migration.name)
    if not migrations:
        print_notice("up to date")
