"""`caseload`, with a server that gives up on readers of watches after CASELOAD_TEST_PATIENCE seconds."""

import os

from service.servicers import watches

watches.STUCK_SECONDS = float(os.environ["CASELOAD_TEST_PATIENCE"])  # type: ignore[misc]

from service.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
