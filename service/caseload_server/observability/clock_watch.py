"""Logs when the machine's clock steps: the times of records, of changes and of log lines jump then."""

import time
from collections.abc import Callable
from typing import Final

import structlog

from caseload_server.clock import now_us

_STEP_SECONDS: Final = 1.0
"""The smallest difference that is a step. Time services correct smaller ones gradually."""
_MAX_PAUSE_SECONDS: Final = 0.1
"""If reading both clocks takes longer, the thread was paused in between, and the difference means nothing."""
_log = structlog.get_logger()


def _steady_seconds() -> float:
    """Returns the time since the machine started, which also passes while it is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ClockWatch:
    """Compares the clock with one that never steps. One thread calls it."""

    def __init__(self, clock: Callable[[], int] = now_us, steady: Callable[[], float] = _steady_seconds) -> None:
        """Args: clock, in microseconds since 1970 (UTC); steady, never steps, in seconds."""
        self._clock = clock
        self._steady = steady
        self._difference = clock() / 1_000_000 - steady()

    def check(self) -> None:
        """Logs a step since the last call."""
        before, now, after = self._steady(), self._clock() / 1_000_000, self._steady()
        if after - before > _MAX_PAUSE_SECONDS:
            return
        step, self._difference = now - after - self._difference, now - after
        if abs(step) >= _STEP_SECONDS:
            _log.warning("clock stepped", seconds=round(step, 3))
