"""`caseload`, whose readiness falls after a minute without a good answer instead of three and six seconds."""

from service import readiness

readiness.FALL_SECONDS = readiness.HANG_SECONDS = 60.0  # type: ignore[misc]

from service.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
