"""Who calls, and what they may."""

from contextvars import ContextVar
from typing import Final, NamedTuple

PERMISSIONS: Final = ("read", "write", "audit")
"""Independent of each other: write does not include read."""


class Principal(NamedTuple):
    """One service that calls this one."""

    name: str
    permissions: frozenset[str]


LOCAL: Final = Principal("local", frozenset(PERMISSIONS))
"""Everyone, where nobody is asked for credentials."""

current: Final[ContextVar[Principal]] = ContextVar("caller")
"""Who made the call that is answered; grpcio runs each call in a context of its own."""
