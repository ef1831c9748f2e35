"""`caseload` on a machine whose clock is wrong by the number of seconds in the file CASELOAD_TEST_CLOCK."""

import os
from pathlib import Path

from caseload_server import clock

_offset = Path(os.environ["CASELOAD_TEST_CLOCK"])
_now_us = clock.now_us
clock.now_us = lambda: _now_us() + int(_offset.read_text()) * 1_000_000

from caseload_server.commands.main import main  # noqa: E402

if __name__ == "__main__":
    main()
