from collections.abc import Iterator

import pytest
from caseload_server.config import Config
from caseload_server.domain.requests import CallContext
from caseload_server.store import RelationshipStore
from caseload_server.store.backends.factory import open_store

from tests.support.write_lock import wait_for_locks


class Clock:
    """A clock that a test advances; microseconds since 1970 (UTC)."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def advance(self, seconds: float) -> int:
        """Moves the clock forward or back, and returns the new time."""
        self.now_us += int(seconds * 1_000_000)
        return self.now_us


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never rejects racing writers because the machine is busy."""
    wait_for_locks(monkeypatch)


@pytest.fixture
def clock() -> Clock:
    return Clock(1_700_000_000_000_000)


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[RelationshipStore]:
    """A new, empty store on every back end."""
    opened = open_store(Config(database=database_url), clock)
    yield opened
    opened.close()


@pytest.fixture
def call() -> CallContext:
    return CallContext(actor="reception", method="/caseload.v1.TherapistService/Test")
