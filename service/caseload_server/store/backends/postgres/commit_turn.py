"""The turn to commit: one transaction of this process at a time locks the counter of revisions."""

import math
import threading
import time
from types import TracebackType
from typing import Final, Self

from psycopg.errors import LockNotAvailable

_TIMEOUT_SECONDS: Final = 3.0
"""How long a transaction waits for the commits of others, including the time in which it takes more writes."""


class CommitTurns:
    """Gives the turns of one process."""

    def __init__(self) -> None:
        """Starts without a transaction that has the turn."""
        self.lock = threading.Lock()
        """Held by the transaction that has the turn."""
        self.lock_timeouts = 0
        """How many of them waited in vain for the counter, which another process held."""

    def wait(self) -> "CommitTurn":
        """Returns the turn of one transaction, to use in a with statement. It is not taken yet."""
        return CommitTurn(self)


class CommitTurn:
    """The turn of one transaction. It ends with the with block."""

    def __init__(self, turns: CommitTurns) -> None:
        """Use `CommitTurns.wait`."""
        self._turns = turns
        self._lock_timeouts = turns.lock_timeouts
        self._deadline = time.monotonic() + _TIMEOUT_SECONDS
        self.is_taken = False

    def take(self, timeout_seconds: float = math.inf) -> bool:
        """Waits for the turn. Returns whether the transaction has it. Args: timeout_seconds, at most what is left."""
        if not self.is_taken:
            left_seconds = max(0.0, self._deadline - time.monotonic())
            self.is_taken = self._turns.lock.acquire(timeout=min(timeout_seconds, left_seconds))
        return self.is_taken

    @property
    def counter_is_locked(self) -> bool:
        """Whether another transaction timed out on the counter meanwhile. This one would wait as long again."""
        return self._turns.lock_timeouts > self._lock_timeouts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_taken:
            self._turns.lock_timeouts += isinstance(error, LockNotAvailable)
            self._turns.lock.release()
