"""The clock of the server."""

import time


def now_us() -> int:
    """Returns the time in microseconds since 1970 (UTC)."""
    return time.time_ns() // 1000
