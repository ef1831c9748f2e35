"""Why a call was refused: a reason to branch on, never the message."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

_DOMAIN: Final = "caseload.v1"
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Refusal(NamedTuple):
    """What Caseload said of a call that it refused."""

    reason: str = ""
    """A name of the contract's ErrorReason without its prefix, such as "THERAPIST_NOT_FOUND"; empty where it was not
    Caseload that answered: no connection, a deadline, a limit of the gRPC library."""
    metadata: Mapping[str, str] = _NOTHING
    """What comes with the reason, such as the limit that was reached."""
    fields: Mapping[str, str] = _NOTHING
    """Of an INVALID_FIELD: the path of each field that is wrong, and what is asked of it."""
    retry_after_seconds: float | None = None
    """When to try again, where that helps; the retries of the connection have waited so long already."""


def why(error: grpc.RpcError) -> Refusal:
    """The reason of a failed call."""
    info, request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in _details(error):
        for part in (info, request, retry):
            detail.Unpack(part)  # takes the one of its type, and leaves the others
    if info.domain != _DOMAIN:
        return Refusal()
    fields = {violation.field: violation.description for violation in request.field_violations}
    delay = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    return Refusal(info.reason, dict(info.metadata), fields, delay)


def _details(error: Any) -> Any:
    for name, value in error.trailing_metadata() or ():  # a failed call is a grpc.Call too
        if name == "grpc-status-details-bin":
            try:
                return Status.FromString(value).details
            except DecodeError:
                break
    return ()
