"""Authentication and authorization: who calls, and whether the principal may call the method."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
from caseload.v1 import change_service_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from caseload_server.domain import errors
from caseload_server.security.api_keys import Keys
from caseload_server.security.principal import LOCAL, Principal, current

PUBLIC: Final = ""
"""The method needs neither credentials nor a permission."""
DENY_ALL: Final = "nobody"
"""A permission that no principal can have."""

_OF_SERVICES: Final = {
    health.SERVICE_NAME: PUBLIC,
    reflection.SERVICE_NAME: "read",
    change_service_pb2.DESCRIPTOR.services_by_name["ChangeService"].full_name: "audit",
}
_PACKAGE: Final = change_service_pb2.DESCRIPTOR.package


def permission(service: str, method: str) -> str:
    """The permission that a method needs, by the contract's idempotency_level; DENY_ALL where no rule covers it."""
    if service in _OF_SERVICES:
        return _OF_SERVICES[service]
    if service.rpartition(".")[0] != _PACKAGE:
        return DENY_ALL
    found: Any = descriptor_pool.Default().FindMethodByName(f"{service}.{method}")
    return "read" if found.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS else "write"


class Auth:
    """Authenticates and authorizes calls."""

    def __init__(self, keys: Callable[[], Keys] | None) -> None:
        """Args: keys, returns the current ones; None where everyone on this machine may do everything."""
        self._keys = keys

    def for_method(self, service: str, method: str) -> Callable[[grpc.ServicerContext], None]:
        """A check for calls of the method: it sets the current principal, unless the method is public.

        The check raises Unauthenticated, PermissionDenied.
        """
        needed = permission(service, method)

        def check(context: grpc.ServicerContext) -> None:
            principal = self.authenticate(context)
            current.set(principal)
            if needed not in principal.permissions:
                raise errors.PermissionDenied(permission=needed)

        return check if needed != PUBLIC else lambda _context: None

    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        """The principal that the call's credentials name. Raises Unauthenticated."""
        if self._keys is None:
            return LOCAL
        keys = self._keys()
        for name, value in context.invocation_metadata():
            if name == "authorization":
                scheme, _, token = str(value).partition(" ")
                principal = keys.of_token(token) if scheme.lower() == "bearer" else None
                break
        else:
            principal = keys.of_name(_name_in_certificate(context.auth_context()))
        if principal is None:
            raise errors.Unauthenticated
        return principal


def _name_in_certificate(properties: Mapping[str, Any]) -> str:
    """The first URI of a verified client certificate, else its first DNS name, else its common name."""
    for kind in ("peer_uri", "peer_dns", "x509_common_name"):
        for value in properties.get(kind, ()):
            return str(value, "ascii", "replace")
    return ""
