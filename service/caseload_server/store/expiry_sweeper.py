"""The thread that ends expired assignments in the store. Each serving process runs one. Each assignment ends once."""

from collections.abc import Callable
from typing import Final

import structlog

from caseload_server.store.repeated_work import RepeatedWork

INTERVAL_SECONDS: Final = 2.0
"""The longest time until the next sweep. Another process may have stored an earlier expire_time meanwhile."""
_MIN_INTERVAL_SECONDS: Final = 0.1
"""The shortest time between two sweeps."""
_MICROS_PER_SECOND: Final = 1_000_000
_log = structlog.get_logger()


class ExpirySweeper(RepeatedWork):
    """Sweeps when the next expire_time comes, and at least every INTERVAL_SECONDS."""

    def __init__(self, end_expired: Callable[[], int | None], clock: Callable[[], int]) -> None:
        """Args: end_expired, as RelationshipStore.end_expired; clock, returns microseconds since 1970 (UTC)."""
        super().__init__("expiry", INTERVAL_SECONDS)
        self._end_expired = end_expired
        self._clock = clock
        self._next_us: int | None = None

    def lag_seconds(self) -> float:
        """Returns how long the oldest expired assignment has waited for its end, in seconds; 0 if there is none."""
        next_us = self._next_us
        return 0.0 if next_us is None else max(0.0, (self._clock() - next_us) / _MICROS_PER_SECOND)

    def _work(self) -> float:
        self._next_us = self._end_expired()
        if self._next_us is None:
            return INTERVAL_SECONDS
        until_next = (self._next_us - self._clock()) / _MICROS_PER_SECOND
        return min(INTERVAL_SECONDS, max(_MIN_INTERVAL_SECONDS, until_next))

    def _log_failure(self, reason: str) -> None:
        _log.warning("expired assignments not ended", reason=reason)
