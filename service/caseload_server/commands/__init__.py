"""The `caseload` command and its subcommands."""
