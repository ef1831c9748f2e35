"""When the outcome of a request_id expires: by the order of revisions, and not by a clock that can step."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from caseload_server.domain.limits import IDEMPOTENCY_TTL_US

_INTERVAL_SECONDS: Final = 60.0
"""Time between two revisions that are kept. Outcomes may live this much longer."""
_TTL_SECONDS: Final = IDEMPOTENCY_TTL_US / 1_000_000
_ANY_TIME_US: Final = 2**63 - 1


class ExpiredOutcomes(NamedTuple):
    """Outcomes of a revision up to one, and written up to a time, have expired. Times are microseconds since 1970."""

    through_revision: int
    before_us: int
    """For the outcomes of earlier revisions than `through_revision`."""
    last_us: int
    """For the outcomes of `through_revision`. A write that changed nothing has it too, and may be much younger."""

    def include(self, revision: int, created_us: int) -> bool:
        """Returns whether an outcome has expired."""
        limit_us = self.last_us if revision == self.through_revision else self.before_us
        return revision <= self.through_revision and created_us <= limit_us


class OutcomeExpiry:
    """Remembers which revisions it saw when, by a clock that never steps.

    What was committed 24 hours ago by that clock has expired, and nothing later, whatever times its rows have. During
    the first 24 hours of this process, only outcomes from before its start can expire. Their age is known only by the
    wall clock, which may have stepped just before the start. So the time between the newest change and the start does
    not count.
    """

    def __init__(
        self, head_revision: int, head_us: int | None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: head_revision, of the store at this moment; head_us, its time in microseconds since 1970 (UTC), None
        for a store without changes; monotonic, in seconds.
        """
        self._head_us = head_us or 0
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen = deque([(monotonic(), head_revision)])

    def record(self, revision: int) -> None:
        """Records that a revision is committed."""
        now = self._monotonic()
        with self._lock:
            seen = self._seen
            if len(seen) > 2 and now - seen[-2][0] < _INTERVAL_SECONDS:
                seen.pop()
            seen.append((now, max(revision, seen[-1][1])))

    def expired(self, now_us: int) -> ExpiredOutcomes:
        """Returns which outcomes have expired. Args: now_us, by the wall clock, in microseconds since 1970 (UTC)."""
        now = self._monotonic()
        with self._lock:
            while len(self._seen) > 1 and now - self._seen[1][0] >= _TTL_SECONDS:
                self._seen.popleft()
            seen_at, revision = self._seen[0]
        last_us = now_us - IDEMPOTENCY_TTL_US
        if now - seen_at >= _TTL_SECONDS:
            return ExpiredOutcomes(revision, _ANY_TIME_US, last_us)
        by_changes_us = self._head_us + int((now - seen_at) * 1_000_000)
        before_us = min(last_us, by_changes_us - IDEMPOTENCY_TTL_US)
        return ExpiredOutcomes(revision, before_us, before_us)
