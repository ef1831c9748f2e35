"""Whether the store answers, asked all the time, so that readiness is true before a call has to find out."""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog
from caseload.v1 import assignment_service_pb2, change_service_pb2, patient_service_pb2, therapist_service_pb2

LIVENESS: Final = ""
READINESS: Final = tuple(
    service.full_name
    for file in (assignment_service_pb2, change_service_pb2, patient_service_pb2, therapist_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
"""The names that the health service answers for."""
ASK_SECONDS: Final = 1.0
"""Between two checks of the store."""
FALL_SECONDS: Final = 3.0
"""The server is not ready after this time without a good answer: a moment's failure moves no traffic."""
HANG_SECONDS: Final = 6.0
"""The same while a check is under way: it may be late because the processor is what is short."""
GOOD_TO_RETURN: Final = 2
"""Good answers in a row after which the server is ready again."""
_log = structlog.get_logger()


class Readiness:
    """Checks the store in one thread, and reports in another when the server becomes ready or not ready."""

    def __init__(
        self,
        check: Callable[[], None],
        report: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
        ask_seconds: float = ASK_SECONDS,
    ) -> None:
        """Args: check, raises where the store does not answer; report, is given whether it is ready; clock, in seconds;
        ask_seconds, between two checks."""
        self._check = check
        self._report = report
        self._clock = clock
        self._ask_seconds = ask_seconds
        self._ready = True
        self._stopped = threading.Event()
        self._good, self._good_at, self._reason = 0, clock(), ""
        self._asking = threading.Thread(target=self._keep_asking, name="asking", daemon=True)
        self._thread = threading.Thread(target=self._keep_updating, name="readiness", daemon=True)

    def start(self) -> None:
        """Begins, with a store that answers."""
        self._good_at = self._clock()
        self._asking.start()
        self._thread.start()

    def stop(self) -> None:
        """Reports nothing any more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(self._ask_seconds)
            self._asking.join(self._ask_seconds)  # it may hang

    def ask(self) -> None:
        """Checks the store once, and notes how it answered."""
        try:
            self._check()
        except Exception as error:  # noqa: BLE001 - the thread must outlive whatever the database has
            self._good, self._reason = 0, type(error).__qualname__
        else:
            self._good, self._good_at, self._reason = self._good + 1, self._clock(), ""

    def update(self) -> None:
        """Reports once where the notes and the clock say that readiness has changed."""
        patience = FALL_SECONDS if self._reason else HANG_SECONDS
        answers = self._clock() - self._good_at < patience
        ready = answers and (self._ready or self._good >= GOOD_TO_RETURN)
        if ready != self._ready and not self._stopped.is_set():
            self._ready = ready
            self._report(ready)  # before the log, which may keep it waiting
            if ready:
                _log.warning("ready")
            else:
                _log.warning("not ready", reason=self._reason or "no answer")
                self._good = 0

    def _keep_asking(self) -> None:
        while not self._stopped.wait(self._ask_seconds):
            self.ask()

    def _keep_updating(self) -> None:
        """In a thread of its own, since a check may hang."""
        while not self._stopped.wait(self._ask_seconds):
            self.update()
