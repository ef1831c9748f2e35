"""A thread that works on the store again and again, until it is stopped."""

import threading
from abc import ABC, abstractmethod
from typing import Final

_FIRST_SECONDS: Final = 0.1
"""The time from the start of the thread to its first work."""
_STOP_SECONDS: Final = 5.0
"""How long a stop waits for the work in progress, which may hang."""


class RepeatedWork(ABC):
    """Repeats work in a thread. It survives failures, and logs the first of several in a row."""

    def __init__(self, thread_name: str, interval_seconds: float) -> None:
        """Args: interval_seconds, the time from a failure to the next work."""
        self._interval_seconds = interval_seconds
        self._is_failing = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=thread_name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread, after the work in progress."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def run_once(self) -> float:
        """Works once. Returns the time until the next work, in seconds."""
        try:
            seconds = self._work()
        except Exception as error:  # noqa: BLE001 - the thread must survive any failure of the database
            if not self._is_failing and not self._stopped.is_set():
                self._is_failing = True
                self._log_failure(type(error).__qualname__)
            return self._interval_seconds
        self._is_failing = False
        return seconds

    @abstractmethod
    def _work(self) -> float:
        """Works. Returns the time until the next work, in seconds. Raises any error."""

    @abstractmethod
    def _log_failure(self, reason: str) -> None:
        """Logs a failure. Args: reason, the type of the error."""

    def _run(self) -> None:
        seconds = _FIRST_SECONDS
        while not self._stopped.wait(seconds):
            seconds = self.run_once()
