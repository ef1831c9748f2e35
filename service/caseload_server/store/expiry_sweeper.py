"""The thread that ends expired assignments in the store. Each serving process runs one. Each assignment ends once."""

import threading
from collections.abc import Callable
from typing import Final

import structlog

INTERVAL_SECONDS: Final = 2.0
"""The longest time until the next sweep. Another process may have stored an earlier expire_time meanwhile."""
_MIN_INTERVAL_SECONDS: Final = 0.1
"""The shortest time between two sweeps."""
_STOP_SECONDS: Final = 5.0
"""How long a stop waits for the sweep in progress, which may hang."""
_MICROS_PER_SECOND: Final = 1_000_000
_log = structlog.get_logger()


class ExpirySweeper:
    """Sweeps when the next expire_time comes, and at least every INTERVAL_SECONDS."""

    def __init__(self, end_expired: Callable[[], int | None], clock: Callable[[], int]) -> None:
        """Args: end_expired, as RelationshipStore.end_expired; clock, returns microseconds since 1970 (UTC)."""
        self._end_expired = end_expired
        self._clock = clock
        self._next_us: int | None = None
        self._is_failing = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="expiry", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread, after the sweep in progress."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def lag_seconds(self) -> float:
        """Returns how long the oldest expired assignment has waited for its end, in seconds; 0 if there is none."""
        next_us = self._next_us
        return 0.0 if next_us is None else max(0.0, (self._clock() - next_us) / _MICROS_PER_SECOND)

    def sweep(self) -> float:
        """Sweeps once. Returns the time until the next sweep, in seconds. After a failure it is the longest one."""
        try:
            self._next_us = self._end_expired()
        except Exception as error:  # noqa: BLE001 - the thread must survive any failure of the database
            if not self._is_failing and not self._stopped.is_set():
                self._is_failing = True
                _log.warning("expired assignments not ended", reason=type(error).__qualname__)
            return INTERVAL_SECONDS
        self._is_failing = False
        if self._next_us is None:
            return INTERVAL_SECONDS
        until_next = (self._next_us - self._clock()) / _MICROS_PER_SECOND
        return min(INTERVAL_SECONDS, max(_MIN_INTERVAL_SECONDS, until_next))

    def _run(self) -> None:
        seconds = _MIN_INTERVAL_SECONDS
        while not self._stopped.wait(seconds):
            seconds = self.sweep()
