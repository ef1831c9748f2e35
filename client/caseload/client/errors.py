"""The reason and the details of a failed call. Branch on the reason, never on the message."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar, cast

import grpc
from caseload.client.reasons import Reason
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

_DOMAIN: Final = "caseload.v1"
_EMPTY: Final[Mapping[str, str]] = MappingProxyType({})
Error = TypeVar("Error", bound=grpc.RpcError)


class ErrorDetails(NamedTuple):
    """The details that Caseload sent with an error."""

    reason: Reason = ""
    """A name of the contract's ErrorReason without its prefix, such as "THERAPIST_NOT_FOUND". Empty if the error is not
    from Caseload, such as a lost connection, a deadline, or a limit of the gRPC library. A server that is newer than
    this client can send a reason that the type does not list."""
    metadata: Mapping[str, str] = _EMPTY
    """Values for the reason, such as the limit that was reached. docs/errors.md lists them."""
    fields: Mapping[str, str] = _EMPTY
    """For INVALID_FIELD: the path of each invalid field, and its rule."""
    retry_after_seconds: float | None = None
    """The delay before a retry, in seconds; None if the server sent none. The retries of the client already used it."""


def error_info(error: grpc.RpcError) -> ErrorDetails:
    """Returns the reason and details of a failed call, of either client. They are empty if it is not from Caseload.

    The details are those of google.rpc: https://google.aip.dev/193
    """
    info, request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in _details(error):
        for part in (info, request, retry):
            with suppress(DecodeError):
                detail.Unpack(part)  # unpacks only the detail of its own type
    if info.domain != _DOMAIN:
        return ErrorDetails()
    fields = {violation.field: violation.description for violation in request.field_violations}
    delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if retry.HasField("retry_delay") else None
    return ErrorDetails(cast("Reason", info.reason), dict(info.metadata), fields, delay)


def add_reason(error: Error) -> Error:
    """Adds the reason, its metadata and the invalid fields to an error as a note, which the traceback shows.

    Returns the error. It does not change an error that has the note or is not from Caseload.
    """
    note = "\n".join(_note_lines(error_info(error)))
    if note and note not in getattr(error, "__notes__", ()):
        error.add_note(note)
    return error


def _note_lines(details: ErrorDetails) -> Iterator[str]:
    if details.reason:
        yield f"reason: {details.reason}"
    yield from (f"metadata {name}: {value}" for name, value in sorted(details.metadata.items()))
    yield from (f"field {path or '(the whole request)'}: {rule}" for path, rule in details.fields.items())


def status_code(error: Any) -> grpc.StatusCode | None:
    """Returns the code of an error; None for an error that an interceptor made itself, without one."""
    code: grpc.StatusCode | None = error.code() if hasattr(error, "code") else None
    return code


def _details(error: Any) -> Any:
    # The error of a failed call is a grpc.Call too; that of an interceptor is not.
    if not hasattr(error, "trailing_metadata"):
        return ()
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            try:
                return Status.FromString(value).details
            except DecodeError:
                break
    return ()
