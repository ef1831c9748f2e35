"""`caseload migrate`: brings the schema up to date."""

import os

import click

from caseload_server.commands.options import database_option


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
