"""`caseload log head`: prints the head of the change log, to be kept outside of the database."""

import click

from caseload_server.commands.options import database_option
from caseload_server.commands.snapshots import open_snapshot
from caseload_server.commands.standard_streams import print_line


@click.group(name="log")
def log_commands() -> None:
    """Inspect the hash chain of the change log."""


@log_commands.command()
@database_option
def head(database: str) -> None:
    """Print REVISION:HASH of the newest change set. The server can keep running.

    The hash depends on all change sets before. `caseload verify --head` compares a store with it.
    """
    from caseload_server.store.change_log import read_head

    with open_snapshot(database) as transaction:
        print_line(str(read_head(transaction)))
