"""`caseload` whose processes never end an expired assignment by themselves."""

from caseload_server.store import expiry_sweeper

expiry_sweeper.ExpirySweeper.sweep = lambda self: expiry_sweeper.INTERVAL_SECONDS  # type: ignore[method-assign]

from caseload_server.commands.main import main  # noqa: E402

if __name__ == "__main__":
    main()
