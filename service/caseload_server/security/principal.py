"""Who calls, and what they may."""

from contextvars import ContextVar
from typing import Final, NamedTuple

PERMISSIONS: Final = ("read", "write", "audit")
"""Independent of each other: write does not include read."""


class Caller(NamedTuple):
    """One service that calls this one."""

    name: str
    permissions: frozenset[str]


LOCAL: Final = Caller("local", frozenset(PERMISSIONS))
"""Everyone, where nobody is asked for credentials."""

current: Final[ContextVar[Caller]] = ContextVar("caller")
"""Who made the call that is answered; grpcio runs each call in a context of its own."""
