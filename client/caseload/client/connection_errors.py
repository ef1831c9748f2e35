"""The connection error of a call that ended at its deadline. Both clients share this module."""

from typing import Any, Final

import grpc
from caseload.client.errors import error_info

PROBE_METHOD: Final = "/grpc.health.v1.Health/Check"
"""It has no effect and needs no key. Without a connection it fails at once with the channel's last connection error."""
PROBE_OPTIONS: Final = {"timeout": 0.2, "wait_for_ready": False}
"""The arguments of that call. The timeout, in seconds, limits the wait for a connection attempt in progress."""


def may_lack_connection(error: Any) -> bool:
    """Returns whether a call ended at its own deadline. Then a missing connection can be the cause."""
    return error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and not error_info(error).reason


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
