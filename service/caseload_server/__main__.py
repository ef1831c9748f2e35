"""Runs the `caseload` command: `python -m caseload_server`."""

from caseload_server.commands.main import main

main()
