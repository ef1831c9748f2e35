from collections.abc import Iterator
from pathlib import Path

import pytest

from service.records import Call
from service.store import RelationshipStore
from service.store.migrate import migrate
from service.store.sqlite import SqliteDatabase


class Clock:
    """A time that stands still until a test moves it; microseconds since 1970 (UTC)."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def advance(self, seconds: float) -> int:
        """Moves on, or back, and returns the new time."""
        self.now_us += int(seconds * 1_000_000)
        return self.now_us


@pytest.fixture
def clock() -> Clock:
    return Clock(1_700_000_000_000_000)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[RelationshipStore]:
    """An empty store of the test's own. Every back end is put here, and no test asks which it is."""
    path = tmp_path / "caseload.db"
    migrate(path)
    opened = RelationshipStore(SqliteDatabase(path), clock)
    yield opened
    opened.close()


@pytest.fixture
def call() -> Call:
    return Call(actor="reception", method="/caseload.v1.TherapistService/Test")
