"""Converts domain errors to gRPC statuses with google.rpc details (AIP-193, https://google.aip.dev/193)."""

import math
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from caseload_server.domain.errors import DomainError

DOMAIN: Final = "caseload.v1"
"""The domain in every ErrorInfo."""
_PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
"""The trailing metadata that gRPC's own retries obey, in milliseconds (gRFC A6)."""

CODES: Final[dict[str, int]] = {
    "INVALID_FIELD": Code.INVALID_ARGUMENT,
    "PAGE_TOKEN_INVALID": Code.INVALID_ARGUMENT,
    "PAGE_TOKEN_MISMATCH": Code.INVALID_ARGUMENT,
    "REQUEST_ID_REUSED": Code.INVALID_ARGUMENT,
    "THERAPIST_NOT_FOUND": Code.NOT_FOUND,
    "PATIENT_NOT_FOUND": Code.NOT_FOUND,
    "ASSIGNMENT_NOT_FOUND": Code.NOT_FOUND,
    "ID_TAKEN": Code.ALREADY_EXISTS,
    "IDENTIFIER_TAKEN": Code.ALREADY_EXISTS,
    "ASSIGNMENT_DIFFERS": Code.ALREADY_EXISTS,
    "THERAPIST_DELETED": Code.FAILED_PRECONDITION,
    "PATIENT_DELETED": Code.FAILED_PRECONDITION,
    "THERAPIST_NOT_ACTIVE": Code.FAILED_PRECONDITION,
    "PATIENT_NOT_ACTIVE": Code.FAILED_PRECONDITION,
    "PRIMARY_EXISTS": Code.FAILED_PRECONDITION,
    "THERAPIST_AT_CAPACITY": Code.FAILED_PRECONDITION,
    "HAS_ACTIVE_ASSIGNMENTS": Code.FAILED_PRECONDITION,
    "PERIOD_OVERLAPS": Code.FAILED_PRECONDITION,
    "TOO_MANY_ASSIGNMENTS": Code.FAILED_PRECONDITION,
    "PATIENT_MERGED": Code.FAILED_PRECONDITION,
    "BIRTH_DATES_DIFFER": Code.FAILED_PRECONDITION,
    "MERGE_TOO_LARGE": Code.FAILED_PRECONDITION,
    "ETAG_MISMATCH": Code.ABORTED,
    "STORE_BUSY": Code.UNAVAILABLE,
    "STORE_UNAVAILABLE": Code.UNAVAILABLE,
    "OUTCOME_UNKNOWN": Code.UNAVAILABLE,
    "STORE_FULL": Code.RESOURCE_EXHAUSTED,
    "SHUTTING_DOWN": Code.UNAVAILABLE,
    "ACCESS_LOG_UNAVAILABLE": Code.UNAVAILABLE,
    "OVERLOADED": Code.RESOURCE_EXHAUSTED,
    "REVISION_PRUNED": Code.OUT_OF_RANGE,
    "REVISION_FOREIGN": Code.OUT_OF_RANGE,
    "VERSIONS_NOT_KEPT": Code.OUT_OF_RANGE,
    "TOO_MANY_WATCHES": Code.RESOURCE_EXHAUSTED,
    "WATCH_TOO_SLOW": Code.ABORTED,
    "UNAUTHENTICATED": Code.UNAUTHENTICATED,
    "PERMISSION_DENIED": Code.PERMISSION_DENIED,
    "DEADLINE_EXCEEDED": Code.DEADLINE_EXCEEDED,
    "INTERNAL": Code.INTERNAL,
}
"""Maps each reason to its google.rpc.Code. A test compares the table with the comments of error_reason.proto."""

CODE_NAMES: Final[dict[str, str]] = {reason: Code.Name(code) for reason, code in CODES.items()}
"""The name of each reason's code, as the access log has it."""


def to_status(error: DomainError) -> Status:
    """Returns the status for an error. It always has an ErrorInfo, and takes less than 4 KiB with all other details."""
    code = CODES[error.reason]
    messages: list[Message] = [details.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.violations:
        fields = (details.BadRequest.FieldViolation(field=v.field, description=v.description) for v in error.violations)
        messages.append(details.BadRequest(field_violations=fields))
    if code == Code.FAILED_PRECONDITION:
        violation = details.PreconditionFailure.Violation(type=error.reason, description=error.message)
        messages.append(details.PreconditionFailure(violations=[violation]))
    messages += [details.ResourceInfo(resource_type=r.type, resource_name=r.name) for r in error.resources]
    if error.retry_after_seconds is not None:
        delay = Duration(nanos=int(error.retry_after_seconds * 1e9) % 10**9, seconds=int(error.retry_after_seconds))
        messages.append(details.RetryInfo(retry_delay=delay))
    return Status(code=code, message=error.message, details=map(_pack, messages))


def retry_pushback(error: DomainError) -> tuple[tuple[str, str], ...]:
    """Returns the trailing metadata for gRPC's own retries: the delay of RetryInfo, or -1 to stop them (gRFC A6)."""
    if error.retry_after_seconds is not None:
        return ((_PUSHBACK_KEY, str(math.ceil(error.retry_after_seconds * 1000))),)
    # Without a delay, an immediate retry would get the same error again.
    return ((_PUSHBACK_KEY, "-1"),) if CODES[error.reason] == Code.RESOURCE_EXHAUSTED else ()


def _pack(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
