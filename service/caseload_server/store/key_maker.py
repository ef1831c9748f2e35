"""The thread that makes the words and keys of records that an older instance wrote. Each serving process runs one."""

import threading
from collections.abc import Callable, Iterator
from typing import Final

import structlog

INTERVAL_SECONDS: Final = 10.0
"""The time between two looks for such records."""
_FIRST_SECONDS: Final = 0.1
_PAUSE_SECONDS: Final = 0.05
"""The time between two transactions, which leaves most of the database to callers."""
_STOP_SECONDS: Final = 5.0
"""How long a stop waits for the transaction in progress, which may hang."""
_log = structlog.get_logger()


class KeyMaker:
    """Makes missing words and keys, at the start and then now and then."""

    def __init__(self, catch_up: Callable[[], Iterator[int]]) -> None:
        """Args: catch_up, as KeyCatchUp.run."""
        self._catch_up = catch_up
        self._is_failing = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread, after the transaction in progress."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def make_keys(self) -> int:
        """Makes all missing words and keys. Returns the number of records. It ends early when it fails."""
        made = 0
        try:
            for count in self._catch_up():
                made += count
                if self._stopped.wait(_PAUSE_SECONDS):
                    break
        except Exception as error:  # noqa: BLE001 - the thread must survive any failure of the database
            if not self._is_failing and not self._stopped.is_set():
                self._is_failing = True
                _log.warning("keys not made", reason=type(error).__qualname__)
        else:
            self._is_failing = False
        if made:
            _log.info("keys made", records=made)
        return made

    def _run(self) -> None:
        seconds = _FIRST_SECONDS
        while not self._stopped.wait(seconds):
            self.make_keys()
            seconds = INTERVAL_SECONDS
