"""Limits the access log lines of unauthenticated calls, and counts the lines that it leaves out."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import structlog

from caseload_server.domain.limits import MAX_ANONYMOUS_LINES

_log = structlog.get_logger()


class AnonymousLines:
    """Admits up to MAX_ANONYMOUS_LINES lines a second of each status code, and reports how many it left out.

    Anyone on the network can cause such lines: calls without valid credentials, and health checks.
    """

    def __init__(self, write_count: Callable[[str, int], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Args: write_count, writes the code and the number of lines left out to the access log; clock, in seconds."""
        self._write_count = write_count
        self._clock = clock
        self._lock = threading.Lock()
        self._second_ends = 0.0
        self._admitted: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._timer: threading.Timer | None = None

    def admit(self, code: str) -> bool:
        """Returns whether to write the line of a call. Counts it if not. Args: code, the name of its status code."""
        with self._lock:
            if self._clock() >= self._second_ends:
                self._second_ends = self._clock() + 1.0
                self._admitted.clear()
            self._admitted[code] += 1
            if self._admitted[code] <= MAX_ANONYMOUS_LINES:
                return True
            self._left_out[code] += 1
            self._start_timer()
        return False

    def report(self) -> None:
        """Reports the lines that were left out since the last report, if any."""
        with self._lock:
            left_out, self._left_out = self._left_out, Counter()
            timer, self._timer = self._timer, None
        if timer:
            timer.cancel()
        for code, count in left_out.items():
            self._write_count(code, count)
            _log.warning("access log lines left out", code=code, count=count)

    def _start_timer(self) -> None:
        if not self._timer:
            timer = threading.Timer(1.0, self.report)
            timer.name, timer.daemon = "anonymous-lines", True
            with suppress(RuntimeError):  # no thread can be started: a later call or the stop reports
                timer.start()
                self._timer = timer
