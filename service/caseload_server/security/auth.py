"""Authentication and authorization: which principal calls, and whether it may call the method."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
from caseload.v1 import change_service_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from caseload_server.domain import errors
from caseload_server.security import certificates
from caseload_server.security.api_keys import ApiKeys
from caseload_server.security.principal import LOCAL, Principal, current_principal

PUBLIC: Final = ""
"""The method needs no credentials and no permission."""
DENY_ALL: Final = "nobody"
"""A permission that no principal can have."""

_SERVICE_PERMISSIONS: Final = {
    health.SERVICE_NAME: PUBLIC,
    reflection.SERVICE_NAME: "read",
    change_service_pb2.DESCRIPTOR.services_by_name["ChangeService"].full_name: "audit",
}
"""The permission of every method of a service, for services whose methods all need the same one."""
_PACKAGE: Final = change_service_pb2.DESCRIPTOR.package


def required_permission(service: str, method: str) -> str:
    """Returns the permission that a method needs, from its idempotency_level in the contract.

    Returns DENY_ALL for a method that no rule covers.
    """
    if service in _SERVICE_PERMISSIONS:
        return _SERVICE_PERMISSIONS[service]
    if service.rpartition(".")[0] != _PACKAGE:
        return DENY_ALL
    descriptor: Any = descriptor_pool.Default().FindMethodByName(f"{service}.{method}")
    return "read" if descriptor.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS else "write"


class Auth:
    """Authenticates and authorizes calls."""

    def __init__(self, keys: Callable[[], ApiKeys] | None) -> None:
        """Args: keys, returns the current keys; None when every caller on this machine has all permissions."""
        self._keys = keys

    def authorizer(self, service: str, method: str) -> Callable[[grpc.ServicerContext], str]:
        """Returns the check for calls of one method.

        The check sets the current principal and returns its name. For a public method it only returns an empty name.
        It raises Unauthenticated and PermissionDenied.
        """
        needed = required_permission(service, method)

        def authorize(context: grpc.ServicerContext) -> str:
            principal = self.authenticate(context)
            current_principal.set(principal)
            _require(needed, principal)
            return principal.name

        return authorize if needed != PUBLIC else lambda _context: ""

    def rechecker(self, service: str, method: str) -> Callable[[grpc.ServicerContext], Callable[[], None]]:
        """Returns the function that makes a check for one open stream of a method.

        The check raises Unauthenticated or PermissionDenied when the caller may no longer read the stream: its key is
        removed or given to another caller, its permission is removed, or its credentials have expired. While neither
        the keys nor the time have changed anything, it only compares them.
        """
        needed = required_permission(service, method)

        def recheck(context: grpc.ServicerContext) -> Callable[[], None]:
            return _OpenStream(self, needed, context).check

        return recheck if needed != PUBLIC else lambda _context: lambda: None

    def keys(self) -> ApiKeys | None:
        """Returns the current keys, the same object until they change."""
        return self._keys() if self._keys else None

    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        """Returns the principal that the call's credentials belong to. Raises Unauthenticated."""
        if self._keys is None:
            return LOCAL
        keys = self._keys()
        for name, value in context.invocation_metadata():
            if name == "authorization":
                scheme, _, token = str(value).partition(" ")
                principal = keys.principal_by_token(token) if scheme.lower() == "bearer" else None
                break
        else:
            principal = _certificate_principal(keys, context.auth_context())
        if principal is None or principal.is_expired():
            raise errors.Unauthenticated
        return principal


class _OpenStream:
    """The authorization of one open stream."""

    def __init__(self, auth: Auth, needed: str, context: grpc.ServicerContext) -> None:
        self._auth = auth
        self._needed = needed
        self._context = context
        self._principal = current_principal.get()
        self._keys: object = ()  # so that the first check authenticates: the keys may have changed since the admission

    def check(self) -> None:
        """Raises Unauthenticated or PermissionDenied."""
        keys = self._auth.keys()
        if keys is self._keys and not self._principal.is_expired():
            return
        principal = self._auth.authenticate(self._context)
        if principal.name != self._principal.name:
            raise errors.Unauthenticated
        _require(self._needed, principal)
        self._principal, self._keys = principal, keys


def _require(permission: str, principal: Principal) -> None:
    if permission not in principal.permissions:
        raise errors.PermissionDenied(permission=permission)


def _certificate_principal(keys: ApiKeys, properties: Mapping[str, Any]) -> Principal | None:
    principal = keys.principal_by_name(_certificate_name(properties))
    if principal is None:
        return None
    [pem] = properties["x509_pem_cert"]
    return principal._replace(valid_until=certificates.valid_until(pem))


def _certificate_name(properties: Mapping[str, Any]) -> str:
    """Returns the first URI of a verified client certificate, else its first DNS name, else its common name."""
    for kind in ("peer_uri", "peer_dns", "x509_common_name"):
        for value in properties.get(kind, ()):
            return str(value, "ascii", "replace")
    return ""
