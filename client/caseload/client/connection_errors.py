"""The connection error of a call that ended at its deadline. Both clients share this module."""

import time
from threading import Lock
from typing import Any, Final

import grpc
from caseload.client.errors import error_info, status_code

PROBE_METHOD: Final = "/grpc.health.v1.Health/Check"
"""It has no effect and needs no key. Without a connection it fails at once with the channel's last connection error."""
PROBE_OPTIONS: Final = {"timeout": 0.2, "wait_for_ready": False}
"""The arguments of that call. The timeout, in seconds, limits the wait for a connection attempt in progress."""
STILL_CONNECTING: Final = "the client is still connecting"
"""The cause if the connection attempt in progress has not failed yet."""
PAUSE_SECONDS: Final = 1.0
"""The shortest time between two probes of a client."""


class Pause:
    """The pause after each probe, so that calls that time out do not add to an overload. Threads can share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._until = 0.0

    def start(self) -> bool:
        """Starts a pause, unless one is on. Returns whether it started: only then may the caller send a probe."""
        with self._lock:
            now = time.monotonic()
            is_on = now < self._until
            if not is_on:
                self._until = now + PAUSE_SECONDS
        return not is_on


def may_lack_connection(error: Any) -> bool:
    """Returns whether a call ended at its own deadline. Then a missing connection can be the cause."""
    return status_code(error) == grpc.StatusCode.DEADLINE_EXCEEDED and not error_info(error).reason


def has_timed_out(probe: Any) -> bool:
    """Returns whether a probe got no answer. Then the state of the channel shows whether it has a connection."""
    return bool(probe.code() == grpc.StatusCode.DEADLINE_EXCEEDED)


def connection_error(probe: Any) -> str:
    """Returns the last connection error from the error of a probe, or an empty string if the probe reached a server."""
    return str(probe.details()) if probe.code() == grpc.StatusCode.UNAVAILABLE else ""


def details_with(error: Any, cause: str) -> str:
    """Returns the details of a call's error with the connection error added."""
    return f"{error.details()}; no connection: {cause}"


@grpc.Call.register
class NoConnectionError(grpc.RpcError):
    """The error of a call that had no connection until its deadline. Its details contain the last connection error.

    All other members are those of the error of grpc.
    """

    def __init__(self, error: grpc.RpcError, cause: str) -> None:
        """Args: cause, the last connection error."""
        self._error: Final[Any] = error
        self._details = details_with(error, cause)
        super().__init__(f"{self._error.code()}: {self._details}")

    def details(self) -> str:
        return self._details

    def __getattr__(self, name: str) -> Any:
        return getattr(self._error, name)
