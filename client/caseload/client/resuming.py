"""How a watch resumes after its stream was interrupted. Both clients share this module."""

import logging
import random
from typing import Any, Final

import grpc
from caseload.client.errors import error_info, status_code
from caseload.client.reasons import Reason
from caseload.v1.change_service_pb2 import WatchChangesRequest, WatchChangesResponse

REPORT_AFTER_SECONDS: Final = 3.0
"""After this time without a response, a new stream of a watch checks its connection."""
_INITIAL_DELAY_SECONDS: Final = 0.1
_MAX_DELAY_SECONDS: Final = 5.0
_INTERRUPTED: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
"""The server stopped, the connection was lost, or the server cancelled the stream of a stuck reader."""
_RESET: Final = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
"""Without a reason, after a response: a proxy lost its connection to the server, and reset the stream."""
_TRANSIENT: Final[set[Reason]] = {"WATCH_TOO_SLOW", "OVERLOADED"}
_log: Final = logging.getLogger("caseload.client")


class Resumption:
    """The position of a watch, the delay before its next attempt, and its log lines."""

    def __init__(self, request: WatchChangesRequest) -> None:
        """Args: request, whose after_revision advances with the responses."""
        self.request: Final = request
        self._delay = _INITIAL_DELAY_SECONDS
        self._started = self._reported = False

    def received(self, response: WatchChangesResponse) -> None:
        """Advances the position to the revision of a response."""
        self.request.after_revision = response.through_revision
        self._delay, self._started, self._reported = _INITIAL_DELAY_SECONDS, True, False

    def can_resume(self, error: Any) -> bool:
        """Returns whether a watch that ended with this error can be resumed."""
        reason = error_info(error).reason
        # After a restart all watches move to the other instance, which may be full until the first one is back.
        full = self._started and reason == "TOO_MANY_WATCHES"
        had_responses = self._started and self._delay == _INITIAL_DELAY_SECONDS
        expired = had_responses and reason == "UNAUTHENTICATED"  # its token; the next attempt has the current one
        reset = self._started and not reason and status_code(error) in _RESET
        resumes = status_code(error) in _INTERRUPTED or reason in _TRANSIENT or full or expired or reset
        if resumes and self._delay > _INITIAL_DELAY_SECONDS:  # not at the end of a stream that had responses
            self.report(f"{reason or error.code().name}: {error.details()}")
        return resumes

    def next_delay(self) -> float:
        """Returns the delay before the next attempt, in seconds. It doubles after each attempt without a response."""
        delay = self._delay * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, so that watches do not all return at once
        self._delay = min(self._delay * 2, _MAX_DELAY_SECONDS)
        return delay

    def report(self, cause: str) -> None:
        """Logs that the watch cannot connect, once after each response. Args: cause; an empty one is not logged."""
        if cause and not self._reported:
            self._reported = True
            _log.warning("watch cannot connect, and tries again until it can: %s", cause)
