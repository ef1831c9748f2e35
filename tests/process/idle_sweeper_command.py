"""`caseload` whose processes never end an expired assignment by themselves."""

from caseload_server.store import expiry_sweeper


def _do_nothing(_sweeper: expiry_sweeper.ExpirySweeper) -> float:
    return expiry_sweeper.INTERVAL_SECONDS


expiry_sweeper.ExpirySweeper._work = _do_nothing  # type: ignore[assignment, method-assign]

from caseload_server.commands.main import main  # noqa: E402

if __name__ == "__main__":
    main()
