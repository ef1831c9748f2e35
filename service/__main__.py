"""`python -m service` is the `caseload` command."""

from service.cli import main

main()
