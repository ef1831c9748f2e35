"""The reason of a failed call, which callers branch on instead of the message."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

_DOMAIN: Final = "caseload.v1"
_EMPTY: Final[Mapping[str, str]] = MappingProxyType({})


class ErrorDetails(NamedTuple):
    """The details that Caseload sent with an error."""

    reason: str = ""
    """A name of the contract's ErrorReason without its prefix, such as "THERAPIST_NOT_FOUND". Empty where the error is
    not from Caseload: no connection, a deadline, or a limit of the gRPC library."""
    metadata: Mapping[str, str] = _EMPTY
    """Values that belong to the reason, such as the limit that was reached."""
    fields: Mapping[str, str] = _EMPTY
    """For INVALID_FIELD: the path of each invalid field, and what is required of it."""
    retry_after_seconds: float | None = None
    """When to retry, where that helps. The client's own retries have already waited this long."""


def error_info(error: grpc.RpcError) -> ErrorDetails:
    """Returns the reason and details of a failed call."""
    info, request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in _details(error):
        for part in (info, request, retry):
            detail.Unpack(part)  # unpacks only the detail of its own type
    if info.domain != _DOMAIN:
        return ErrorDetails()
    fields = {violation.field: violation.description for violation in request.field_violations}
    delay = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    return ErrorDetails(info.reason, dict(info.metadata), fields, delay)


def _details(error: Any) -> Any:
    for name, value in error.trailing_metadata() or ():  # the error of a failed call is a grpc.Call too
        if name == "grpc-status-details-bin":
            try:
                return Status.FromString(value).details
            except DecodeError:
                break
    return ()
