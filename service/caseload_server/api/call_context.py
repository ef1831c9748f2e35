"""Who asks for a write, and how: what the store notes in its log and compares a repeat with."""

from typing import Any, Final

import grpc
from caseload.v1 import assignment_service_pb2, patient_service_pb2, therapist_service_pb2

from caseload_server.domain.requests import CallContext
from caseload_server.security.principal import current_principal

_METHODS: Final = {
    method.input_type.full_name: f"/{service.full_name}/{method.name}"
    for file in (therapist_service_pb2, patient_service_pb2, assignment_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def call_of(request: Any, _context: grpc.ServicerContext) -> CallContext:
    """The call behind a mutating request that has been validated."""
    actor, method = current_principal.get().name, _METHODS[request.DESCRIPTOR.full_name]
    if not request.request_id:
        return CallContext(actor, method, validate_only=request.validate_only)
    return CallContext(actor, method, request.request_id.lower(), _fingerprint(request), request.validate_only)


def _fingerprint(request: Any) -> bytes:
    """The request in deterministic bytes; whether it only validates is no part of what it asks for."""
    whole = type(request)()
    whole.CopyFrom(request)
    whole.ClearField("validate_only")
    whole.ClearField("request_id")
    fingerprint: bytes = whole.SerializeToString(deterministic=True)
    return fingerprint
