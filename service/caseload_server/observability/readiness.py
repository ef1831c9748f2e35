"""Readiness: checks the store all the time, so that the server becomes NOT_SERVING before calls fail."""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog
from caseload.v1 import assignment_service_pb2, change_service_pb2, patient_service_pb2, therapist_service_pb2

LIVENESS_SERVICE: Final = ""
"""The name that reports liveness in the health service."""
READINESS_SERVICES: Final = tuple(
    service.full_name
    for file in (assignment_service_pb2, change_service_pb2, patient_service_pb2, therapist_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
"""The names that report readiness in the health service."""
CHECK_INTERVAL_SECONDS: Final = 1.0
"""Time between two checks of the store."""
FAILURE_TIMEOUT_SECONDS: Final = 3.0
"""Time without a successful check after which the server is not ready. A brief failure thus moves no traffic."""
HANG_TIMEOUT_SECONDS: Final = 6.0
"""The same timeout while a check is under way. It is longer because a busy processor can delay a check."""
RECOVERY_SUCCESSES: Final = 2
"""Number of successful checks in a row after which the server is ready again."""
_log = structlog.get_logger()


class Readiness:
    """Checks the store in one thread, and reports changes of readiness from another."""

    def __init__(
        self,
        check: Callable[[], None],
        report: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
        check_interval_seconds: float = CHECK_INTERVAL_SECONDS,
    ) -> None:
        """Args: check, raises when the store fails; report, takes whether the server is ready; clock, in seconds."""
        self._check = check
        self._report = report
        self._clock = clock
        self._interval_seconds = check_interval_seconds
        self._ready = True
        self._stopped = threading.Event()
        self._successes, self._last_success = 0, clock()
        self._failure: dict[str, str] = {}
        self._check_thread = threading.Thread(target=self._check_loop, name="readiness-check", daemon=True)
        self._report_thread = threading.Thread(target=self._report_loop, name="readiness-report", daemon=True)

    def start(self) -> None:
        """Starts the checks. The store counts as available until then."""
        self._last_success = self._clock()
        self._check_thread.start()
        self._report_thread.start()

    def stop(self) -> None:
        """Stops the checks and the reports."""
        self._stopped.set()
        if self._report_thread.is_alive():
            self._report_thread.join(self._interval_seconds)
            self._check_thread.join(self._interval_seconds)  # a check may hang

    def check_store(self) -> None:
        """Checks the store once, and records the result."""
        try:
            self._check()
        except Exception as error:  # noqa: BLE001 - the thread must survive any failure of the database
            self._successes, self._failure = 0, _describe(error)
        else:
            self._successes, self._last_success, self._failure = self._successes + 1, self._clock(), {}

    def update(self) -> None:
        """Reports once when the recorded results and the clock have changed readiness."""
        timeout_seconds = FAILURE_TIMEOUT_SECONDS if self._failure else HANG_TIMEOUT_SECONDS
        in_time = self._clock() - self._last_success < timeout_seconds
        ready = in_time and (self._ready or self._successes >= RECOVERY_SUCCESSES)
        if ready != self._ready and not self._stopped.is_set():
            self._ready = ready
            self._report(ready)  # before the log, which can block
            if ready:
                _log.warning("ready")
            else:
                _log.warning("not ready", **(self._failure or {"reason": "no answer"}))
                self._successes = 0

    def _check_loop(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            self.check_store()

    def _report_loop(self) -> None:
        """Runs in its own thread, because a check may hang."""
        while not self._stopped.wait(self._interval_seconds):
            self.update()


def _describe(error: Exception) -> dict[str, str]:
    """Returns the fields of the log event: the kind of failure, and what the database says about it."""
    details = {name: getattr(error, name, "") for name in ("sqlstate", "detail")}
    return {"reason": type(error).__qualname__, **{name: text for name, text in details.items() if text}}
