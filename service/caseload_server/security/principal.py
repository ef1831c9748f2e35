"""The authenticated caller of a call, and its permissions."""

import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, NamedTuple

PERMISSIONS: Final = ("read", "write", "audit")
"""Independent of each other: write does not include read."""


class Principal(NamedTuple):
    """A service that calls this server."""

    name: str
    permissions: frozenset[str]
    valid_until: float = math.inf
    """When its credentials expire, in seconds since 1970 (UTC). From then on, its calls and streams are rejected."""

    def is_expired(self) -> bool:
        """Returns whether its credentials have expired."""
        return self.valid_until <= time.time()


RESERVED_NAMES: Final = ("local",)
ISSUER_PREFIX: Final = "oidc:"
"""Names of callers with a token begin with it. So they never equal a name of the keys file."""
RESERVED_PREFIXES: Final = ("cli:", "system:", ISSUER_PREFIX)
"""Names that no line of the keys file can give to a caller, in lower case.

The change log uses them for the operator's commands, for the server itself, and for callers with a token.
"""
CERTIFICATE_PREFIXES: Final = ("uri:", "dns:", "cn:")
"""Prefixes for names in certificates. A URI is not a DNS name, even if both have the same text."""

LOCAL: Final = Principal("local", frozenset(PERMISSIONS))
"""The principal of every call to a server without authentication."""

current_principal: Final[ContextVar[Principal]] = ContextVar("principal")
"""The principal of the current call. grpcio runs each call in its own context."""

check_authorization: Final[ContextVar[Callable[[], None]]] = ContextVar("check_authorization")
"""Raises Unauthenticated or PermissionDenied when the caller of the current stream may no longer read it.

Any thread may call the function. Only streams have one.
"""
