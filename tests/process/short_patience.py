"""`caseload`, with a server that gives up on readers of watches after three seconds instead of half a minute."""

from caseload_server.domain import limits

limits.STUCK_READER_SECONDS = 3.0  # type: ignore[misc]

from caseload_server.commands.main import main  # noqa: E402

if __name__ == "__main__":
    main()
