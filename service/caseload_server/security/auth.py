"""Authentication and authorization: which principal calls, and whether it may call the method."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import grpc
from caseload.v1 import change_service_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from caseload_server.domain import errors
from caseload_server.security.api_keys import ApiKeys
from caseload_server.security.certificates import read_certificate
from caseload_server.security.principal import LOCAL, Principal, current_principal
from caseload_server.security.proxies import TrustedProxies, is_forwarded

if TYPE_CHECKING:
    from caseload_server.security.tokens import Tokens

_TOKEN_DOTS: Final = 2
"""Dots in a signed token (RFC 7515); a key has none."""
PUBLIC: Final[tuple[str, ...]] = ()
"""The method needs no credentials and no permission."""
DENY_ALL: Final = ("nobody",)
"""A permission that no principal can have."""

REFLECTION_SERVICES: Final = (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection")
"""The names of one service: v1 has the messages of v1alpha. The library has only v1alpha."""
_SERVICE_PERMISSIONS: Final = {
    health.SERVICE_NAME: PUBLIC,
    **dict.fromkeys(REFLECTION_SERVICES, ("read",)),
    change_service_pb2.DESCRIPTOR.services_by_name["ChangeService"].full_name: ("audit",),
}
"""The permissions of every method of a service, for services whose methods all need the same ones."""
_METHOD_PERMISSIONS: Final = dict.fromkeys(
    ("ListTherapistVersions", "ListPatientVersions", "ListAssignmentVersions"), ("read", "audit")
)
"""The permissions of methods that need more than the rule says: these show what records were, and who changed them."""
_PACKAGE: Final = change_service_pb2.DESCRIPTOR.package


def required_permissions(service: str, method: str) -> tuple[str, ...]:
    """Returns the permissions that a method needs, all of them. Most follow from idempotency_level in the contract.

    Returns DENY_ALL for a method that no rule covers.
    """
    if service in _SERVICE_PERMISSIONS:
        return _SERVICE_PERMISSIONS[service]
    if service.rpartition(".")[0] != _PACKAGE:
        return DENY_ALL
    if method in _METHOD_PERMISSIONS:
        return _METHOD_PERMISSIONS[method]
    descriptor: Any = descriptor_pool.Default().FindMethodByName(f"{service}.{method}")
    return ("read",) if descriptor.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS else ("write",)


class Auth:
    """Authenticates and authorizes calls."""

    def __init__(
        self,
        keys: Callable[[], ApiKeys] | None,
        tokens: "Tokens | None" = None,
        proxies: TrustedProxies | None = None,
        *,
        admits_forwarded: bool = False,
    ) -> None:
        """Without keys and tokens, every caller on this machine has all permissions.

        Args: keys, returns the callers of the keys file; tokens, verifies those of an identity provider; proxies, in
        front of the server; admits_forwarded, whether those of other machines have all permissions too.
        """
        self._is_open = keys is None and tokens is None
        self._admits_forwarded = admits_forwarded
        self._proxies = proxies or TrustedProxies(())
        without_callers = ApiKeys({}, {})
        self._keys = keys or (lambda: without_callers)
        self._tokens = tokens

    def close(self) -> None:
        """Stops the thread that fetches the keys of the identity provider."""
        if self._tokens:
            self._tokens.close()

    def authorizer(self, service: str, method: str) -> Callable[[grpc.ServicerContext], str]:
        """Returns the check for calls of one method.

        The check sets the current principal and returns its name. For a public method it only returns an empty name.
        It raises Unauthenticated and PermissionDenied.
        """
        needed = required_permissions(service, method)

        def authorize(context: grpc.ServicerContext) -> str:
            principal = self.authenticate(context)
            current_principal.set(principal)
            _require(needed, principal)
            return principal.name

        return authorize if needed != PUBLIC else lambda _context: ""

    def rechecker(self, service: str, method: str) -> Callable[[grpc.ServicerContext], Callable[[], None]]:
        """Returns the function that makes a check for one open stream of a method.

        The check raises Unauthenticated or PermissionDenied when the caller may no longer read the stream:

        - its key was removed, or belongs to another caller now.
        - its permission was removed.
        - its credentials have expired.
        - the identity provider has withdrawn the key that signed its token.

        If no keys have changed and the credentials have not expired, the check only compares the keys.
        """
        needed = required_permissions(service, method)

        def recheck(context: grpc.ServicerContext) -> Callable[[], None]:
            return _OpenStream(self, needed, context).check

        return recheck if needed != PUBLIC else lambda _context: lambda: None

    def known(self) -> tuple[object, object]:
        """Returns the callers and the issuer's keys. Two results are equal while neither has changed."""
        return self._keys(), self._tokens and self._tokens.keys()

    def authenticate(self, context: grpc.ServicerContext) -> Principal:
        """Returns the principal that the call's credentials belong to. Raises Unauthenticated."""
        if not self._is_open:
            return self._principal(context)
        if not self._admits_forwarded and is_forwarded(context.invocation_metadata()):
            raise errors.Unauthenticated("forwarded")
        return LOCAL

    def _principal(self, context: grpc.ServicerContext) -> Principal:
        """Only the first credentials count: a call with a wrong key is rejected, whatever else it carries."""
        for name, value in context.invocation_metadata():
            if name == "authorization":
                scheme, _, secret = str(value).partition(" ")
                # Any number of spaces: https://www.rfc-editor.org/rfc/rfc9110#section-11.4
                return self._by_secret(secret.lstrip(" ") if scheme.lower() == "bearer" else "")
        if self._proxies.has(context.peer()):  # a certificate would be the proxy's own
            raise errors.Unauthenticated("no_credentials")
        return _by_certificate(self._keys(), context)

    def _by_secret(self, secret: str) -> Principal:
        principal = self._keys().principal_by_key(secret)
        if principal is None:
            if self._tokens and secret.count(".") == _TOKEN_DOTS:
                return self._tokens.principal(secret)
            raise errors.Unauthenticated("unknown_key")
        if principal.is_expired():
            raise errors.Unauthenticated("expired_key")
        return principal


class _OpenStream:
    """The authorization of one open stream."""

    def __init__(self, auth: Auth, needed: tuple[str, ...], context: grpc.ServicerContext) -> None:
        self._auth = auth
        self._needed = needed
        self._context = context
        self._principal = current_principal.get()
        self._known: object = ()  # so that the first check authenticates: the keys may have changed since the admission

    def check(self) -> None:
        """Raises Unauthenticated or PermissionDenied."""
        known = self._auth.known()
        if known == self._known and not self._principal.is_expired():
            return
        principal = self._auth.authenticate(self._context)
        if principal.name != self._principal.name:
            raise errors.Unauthenticated("other_caller")
        _require(self._needed, principal)
        self._principal, self._known = principal, known


def _require(permissions: tuple[str, ...], principal: Principal) -> None:
    for permission in permissions:
        if permission not in principal.permissions:
            raise errors.PermissionDenied(permission=permission)


def _by_certificate(keys: ApiKeys, context: grpc.ServicerContext) -> Principal:
    """A certificate must belong to exactly one line of the keys file, by any of its names."""
    chain = context.auth_context().get("x509_pem_cert")
    if not chain:
        raise errors.Unauthenticated("no_credentials")
    try:
        certificate = read_certificate(chain[0])
    except ValueError:
        raise errors.Unauthenticated("malformed_certificate") from None
    found = keys.principals_by_certificate(certificate.names)
    if len(found) != 1:
        raise errors.Unauthenticated("ambiguous_certificate" if found else "unknown_certificate")
    principal = found[0]._replace(valid_until=min(found[0].valid_until, certificate.valid_until))
    if principal.is_expired():
        raise errors.Unauthenticated("expired_certificate")
    return principal
