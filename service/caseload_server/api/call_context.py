"""The context of a write: its caller, its method, and what identifies a repeat of it."""

from typing import Any, Final

import grpc
from caseload.v1 import assignment_service_pb2, patient_service_pb2, therapist_service_pb2

from caseload_server.domain.requests import CallContext
from caseload_server.security.on_behalf_of import current_on_behalf_of
from caseload_server.security.principal import current_principal

_METHODS: Final = {
    method.input_type.full_name: f"/{service.full_name}/{method.name}"
    for file in (therapist_service_pb2, patient_service_pb2, assignment_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Maps the full name of each request message to the method that takes it."""


def call_context(request: Any, _context: grpc.ServicerContext) -> CallContext:
    """Returns the context of a write. Args: request, already validated."""
    actor, method = current_principal.get().name, _METHODS[request.DESCRIPTOR.full_name]
    user = current_on_behalf_of.get()
    if not request.request_id:
        return CallContext(actor, method, validate_only=request.validate_only, on_behalf_of=user)
    fingerprint = request_fingerprint(request)
    return CallContext(actor, method, request.request_id.lower(), fingerprint, request.validate_only, user)


def caller_may_read() -> bool:
    """Returns whether the caller has the permission read."""
    return "read" in current_principal.get().permissions


def request_fingerprint(request: Any) -> bytes:
    """Returns the request in deterministic bytes, without request_id and validate_only."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("validate_only")
    copy.ClearField("request_id")
    fingerprint: bytes = copy.SerializeToString(deterministic=True)
    return fingerprint
