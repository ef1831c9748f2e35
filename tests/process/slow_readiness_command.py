"""`caseload`, which reports NOT_SERVING after a minute of failed checks, not after three and six seconds."""

from caseload_server.observability import readiness

readiness.FAILURE_TIMEOUT_SECONDS = readiness.HANG_TIMEOUT_SECONDS = 60.0  # type: ignore[misc]

from caseload_server.commands.main import main  # noqa: E402

if __name__ == "__main__":
    main()
