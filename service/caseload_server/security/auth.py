"""Who calls, and whether they may: the first thing that is looked at."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
from caseload.v1 import change_service_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from caseload_server.domain import errors
from caseload_server.security.principal import Caller, LOCAL, current
from caseload_server.security.api_keys import Keys

FREE: Final = ""
"""Stands for no permission at all, and no credentials."""
NOBODY: Final = "nobody"
"""A permission that no caller can have."""

_OF_SERVICES: Final = {
    health.SERVICE_NAME: FREE,
    reflection.SERVICE_NAME: "read",
    change_service_pb2.DESCRIPTOR.services_by_name["ChangeService"].full_name: "audit",
}
_PACKAGE: Final = change_service_pb2.DESCRIPTOR.package


def permission(service: str, method: str) -> str:
    """What a method asks for. The contract's idempotency_level decides; what no rule covers is for nobody."""
    if service in _OF_SERVICES:
        return _OF_SERVICES[service]
    if service.rpartition(".")[0] != _PACKAGE:
        return NOBODY
    found: Any = descriptor_pool.Default().FindMethodByName(f"{service}.{method}")
    return "read" if found.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS else "write"


class Admission:
    """Knows callers by their credentials."""

    def __init__(self, keys: Callable[[], Keys] | None) -> None:
        """Args: keys, those of now; None where everyone on this machine may do everything."""
        self._keys = keys

    def to(self, service: str, method: str) -> Callable[[grpc.ServicerContext], None]:
        """Admits calls of the method, and notes who makes one as the current caller; nobody, where nobody is asked.

        What it returns raises Unauthenticated, PermissionDenied.
        """
        needed = permission(service, method)

        def admit(context: grpc.ServicerContext) -> None:
            caller = self._caller(context)
            current.set(caller)
            if needed not in caller.permissions:
                raise errors.PermissionDenied(permission=needed)

        return admit if needed != FREE else lambda _context: None

    def _caller(self, context: grpc.ServicerContext) -> Caller:
        if self._keys is None:
            return LOCAL
        keys = self._keys()
        for name, value in context.invocation_metadata():
            if name == "authorization":
                scheme, _, token = str(value).partition(" ")
                caller = keys.of_token(token) if scheme.lower() == "bearer" else None
                break
        else:
            caller = keys.of_name(_name_in_certificate(context.auth_context()))
        if caller is None:
            raise errors.Unauthenticated
        return caller


def _name_in_certificate(properties: Mapping[str, Any]) -> str:
    """The first URI of a verified client certificate, else its first DNS name, else its common name."""
    for kind in ("peer_uri", "peer_dns", "x509_common_name"):
        for value in properties.get(kind, ()):
            return str(value, "ascii", "replace")
    return ""
