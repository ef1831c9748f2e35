"""The thread that makes the words and keys of records that an older instance wrote. Each serving process runs one."""

from collections.abc import Callable, Iterator
from typing import Final

import structlog

from caseload_server.store.repeated_work import RepeatedWork

INTERVAL_SECONDS: Final = 10.0
"""The time between two looks for such records."""
_PAUSE_SECONDS: Final = 0.05
"""The time between two transactions, which leaves most of the database to callers."""
_log = structlog.get_logger()


class KeyMaker(RepeatedWork):
    """Makes missing words and keys, at the start and then now and then."""

    def __init__(self, catch_up: Callable[[], Iterator[int]]) -> None:
        """Args: catch_up, as KeyCatchUp.run."""
        super().__init__("keys", INTERVAL_SECONDS)
        self._catch_up = catch_up

    def _work(self) -> float:
        made = 0
        try:
            for count in self._catch_up():
                made += count
                if self._stopped.wait(_PAUSE_SECONDS):
                    break
        finally:
            if made:
                _log.info("keys made", records=made)
        return INTERVAL_SECONDS

    def _log_failure(self, reason: str) -> None:
        _log.warning("keys not made", reason=reason)
