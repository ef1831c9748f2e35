"""`python -m caseload_server` is the `caseload` command."""

from caseload_server.commands.main import main

main()
