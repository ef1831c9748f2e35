"""Runs the `caseload` command: `python -m caseload_server`."""

from typing import NoReturn

from caseload_server.commands.early_signals import defer_reload, ignore_signals
from caseload_server.commands.standard_streams import open_closed_streams


def main() -> NoReturn:
    """Runs a command."""
    ignore_signals()
    defer_reload()
    open_closed_streams()
    from caseload_server.commands.main import main as run

    run()


if __name__ == "__main__":
    main()
