"""Staggered retry delays for calls that were shed, so that their callers do not return all at once."""

import threading
import time
from collections.abc import Callable
from typing import Final

SPACING_SECONDS: Final = 0.004
"""Time between two retries, in seconds. Shedding a call takes about 0.1 ms, so retries cost about 3% of one core."""
MIN_DELAY_SECONDS: Final = 0.2
MAX_DELAY_SECONDS: Final = 3.0
"""In seconds. Short compared with a call's deadline, so that a flood of other callers does not use it up."""


class RetryDelays:
    """Gives each caller its own time to retry, one after another.

    When the times up to the longest delay are taken, it starts again with the shortest one, and callers share a time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: clock, returns seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._last = 0.0

    def next_seconds(self) -> float:
        """Returns the delay for the next caller, in seconds."""
        now = self._clock()
        with self._lock:
            at = max(self._last + SPACING_SECONDS, now + MIN_DELAY_SECONDS)
            self._last = at = at if at < now + MAX_DELAY_SECONDS else now + MIN_DELAY_SECONDS
        return at - now
