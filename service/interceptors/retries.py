"""When those who are turned away may come again."""

import threading
import time
from collections.abc import Callable
from typing import Final

SPACING_SECONDS: Final = 0.004
"""Between two who come again. To turn one away takes some 0.1 ms, so all who wait together take a few hundredths of one
core, however many they are."""
LEAST_SECONDS: Final = 0.2
MOST_SECONDS: Final = 3.0
"""Well within the deadline of a call: a flood of others must not send it away for longer than it has."""


class Retries:
    """Gives each caller a time of its own, one after the other, so that they never come all at once.

    When the times up to the last are given away it begins anew with the first, and two get the same.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """All times are free. Args: clock, in seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._last = 0.0

    def after_seconds(self) -> float:
        """How long the caller is to wait."""
        now = self._clock()
        with self._lock:
            at = max(self._last + SPACING_SECONDS, now + LEAST_SECONDS)
            self._last = at = at if at < now + MOST_SECONDS else now + LEAST_SECONDS
        return at - now
