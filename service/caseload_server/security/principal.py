"""The authenticated caller of a call, and its permissions."""

from contextvars import ContextVar
from typing import Final, NamedTuple

PERMISSIONS: Final = ("read", "write", "audit")
"""Independent of each other: write does not include read."""


class Principal(NamedTuple):
    """A service that calls this server."""

    name: str
    permissions: frozenset[str]


LOCAL: Final = Principal("local", frozenset(PERMISSIONS))
"""The principal of every call to a server without a keys file."""

current_principal: Final[ContextVar[Principal]] = ContextVar("principal")
"""The principal of the current call. grpcio runs each call in its own context."""
