"""`caseload` with workers that start only after SIGTERM, while the file CASELOAD_TEST_HOLD exists."""

import os
import signal
import time
from pathlib import Path

_HOLD_SECONDS = 300
"""A bound, so that no process is left behind when a test fails."""

if "_CASELOAD_WORKER" in os.environ and Path(os.environ["CASELOAD_TEST_HOLD"]).exists():
    give_up = time.monotonic() + _HOLD_SECONDS
    while signal.SIGTERM not in signal.sigpending() and time.monotonic() < give_up:
        time.sleep(0.01)

from caseload_server.commands.main import main  # noqa: E402

if __name__ == "__main__":
    main()
