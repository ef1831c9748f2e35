"""`caseload`, with a server that gives up on readers of watches after CASELOAD_TEST_PATIENCE seconds."""

import os

from caseload_server.domain import limits

limits.STUCK_READER_SECONDS = float(os.environ["CASELOAD_TEST_PATIENCE"])  # type: ignore[misc]

from caseload_server.commands.main import main  # noqa: E402

if __name__ == "__main__":
    main()
