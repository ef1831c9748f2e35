"""Why a call found no connection: asked of the channel when a deadline has passed. Of both clients."""

from typing import Any, Final

import grpc
from caseload.client.errors import error_info

PROBE_METHOD: Final = "/grpc.health.v1.Health/Check"
"""Harmless, and needs no key. Without a connection it fails at once with the channel's last connection error."""
PROBE_OPTIONS: Final = {"timeout": 0.2, "wait_for_ready": False}
"""Arguments of the call; the timeout, in seconds, ends it while a connection is being made."""


def may_lack_connection(error: Any) -> bool:
    """Whether a call ended by its own deadline, so that the lack of a connection may be the cause."""
    return error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and not error_info(error).reason


def connection_error(probe: Any) -> str:
    """Returns the last connection error from the error of a probe, or nothing if the probe reached a server."""
    return str(probe.details()) if probe.code() == grpc.StatusCode.UNAVAILABLE else ""


def details_with(error: Any, cause: str) -> str:
    """Returns the details of a call's error with the connection error added."""
    return f"{error.details()}; no connection: {cause}"


@grpc.Call.register
class NoConnectionError(grpc.RpcError):
    """The error of a call that found no connection until its deadline. Its details name the last connection error.

    Everything else is as in grpc's own error.
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
