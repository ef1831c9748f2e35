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
_ASK_SECONDS: Final = 1.0
_FALL_SECONDS: Final = 3.0
"""Without a good answer for so long it is not ready: a moment's failure moves no traffic."""
_HANG_SECONDS: Final = 6.0
"""So long where an answer is under way: it may be late because the processor is what is short."""
_GOOD_TO_RETURN: Final = 2
_log = structlog.get_logger()


class Readiness:
    """Asks in a thread of its own, and tells in another when the answer has changed for good."""

    def __init__(self, check: Callable[[], None], tell: Callable[[bool], None]) -> None:
        """Args: check, raises where the store does not answer; tell, is given whether it is ready."""
        self._check = check
        self._tell = tell
        self._ready = True
        self._stopped = threading.Event()
        self._good, self._good_at, self._reason = 0, 0.0, ""
        self._asking = threading.Thread(target=self._ask, name="asking", daemon=True)
        self._thread = threading.Thread(target=self._follow, name="readiness", daemon=True)

    def start(self) -> None:
        """Begins, with a store that answers."""
        self._good_at = time.monotonic()
        self._asking.start()
        self._thread.start()

    def stop(self) -> None:
        """Tells nothing any more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_ASK_SECONDS)
            self._asking.join(_ASK_SECONDS)  # it may hang

    def _ask(self) -> None:
        while not self._stopped.wait(_ASK_SECONDS):
            try:
                self._check()
            except Exception as error:  # noqa: BLE001 - this thread must outlive whatever the database has
                self._good, self._reason = 0, type(error).__qualname__
            else:
                self._good, self._good_at, self._reason = self._good + 1, time.monotonic(), ""

    def _follow(self) -> None:
        """Looks at a clock, since a check may hang."""
        while not self._stopped.wait(_ASK_SECONDS):
            patience = _FALL_SECONDS if self._reason else _HANG_SECONDS
            answers = time.monotonic() - self._good_at < patience
            ready = answers and (self._ready or self._good >= _GOOD_TO_RETURN)
            if ready != self._ready and not self._stopped.is_set():
                self._ready = ready
                self._tell(ready)  # before the log, which may keep it waiting
                if ready:
                    _log.warning("ready")
                else:
                    _log.warning("not ready", reason=self._reason or "no answer")
                    self._good = 0
