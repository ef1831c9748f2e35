"""`caseload`, with a server that gives up on readers of watches after three seconds instead of half a minute."""

from service.servicers import watches

watches.STUCK_SECONDS = 3.0  # type: ignore[misc]

from service.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
