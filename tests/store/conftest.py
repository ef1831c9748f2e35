from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from caseload_server.config import Config
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.requests import CallContext
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import open_store

from tests.store.merge_setup import with_identifiers
from tests.store.store_builders import assign, patients, therapists
from tests.store.store_calls import make, make_pair
from tests.store.transfer_setup import COVERING, SUPERVISING
from tests.support.write_lock import wait_for_locks

START_US = 1_700_000_000_000_000
"""The time at which the clock of a test begins, in microseconds since 1970 (UTC)."""


class Clock:
    """A clock that a test advances; microseconds since 1970 (UTC)."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us
        self._passed = 0.0

    def __call__(self) -> int:
        return self.now_us

    def advance(self, seconds: float) -> int:
        """Lets time pass, or steps back if it is negative. Returns the new time."""
        self._passed += max(0.0, seconds)
        return self.step(seconds)

    def step(self, seconds: float) -> int:
        """Sets the clock of the machine forward or back, while no time passes. Returns the new time."""
        self.now_us += round(seconds * 1_000_000)
        return self.now_us

    def monotonic(self) -> float:
        """Seconds that have passed."""
        return self._passed


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never rejects racing writers because the machine is busy."""
    wait_for_locks(monkeypatch)


@pytest.fixture
def clock() -> Clock:
    return Clock(START_US)


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[RelationshipStore]:
    """A new, empty store on every back end."""
    opened = open_store(Config(database=database_url), clock, monotonic=clock.monotonic)
    yield opened
    opened.close()


@pytest.fixture
def instances(store: RelationshipStore, database_url: str, clock: Clock) -> Iterator[list[RelationshipStore]]:
    """The store and two more instances of it, which share nothing but the database."""
    with ExitStack() as stack:
        others = [stack.enter_context(closing(open_store(Config(database=database_url), clock))) for _ in range(2)]
        yield [store, *others]


@pytest.fixture
def call() -> CallContext:
    return CallContext(actor="reception", method="/caseload.v1.TherapistService/Test")


@pytest.fixture
def pair(store: RelationshipStore) -> RelationshipStore:
    """The store with therapists t and u, and a patient p."""
    make_pair(store)
    make(store, THERAPIST, "u")
    return store


@pytest.fixture
def unassigned(store: RelationshipStore) -> RelationshipStore:
    """The store with therapists t, u and v, and patients p and q."""
    therapists(store, "t", "u", "v")
    patients(store, "p", "q")
    return store


@pytest.fixture
def filled_store(store: RelationshipStore) -> RelationshipStore:
    """Therapists s, t and u, patients a to d; s treats a (as the primary), b and c."""
    therapists(store, "s", "t", "u")
    patients(store, "a", "b", "c", "d")
    assign(store, "s", "a", role=ROLE_PRIMARY, focus="anxiety")
    assign(store, "s", "b", role=SUPERVISING)
    assign(store, "s", "c", role=COVERING, focus="grief")
    return store


@pytest.fixture
def people(store: RelationshipStore) -> RelationshipStore:
    """Therapists t, u and v, and patients s and p: the source and the target of a merge."""
    therapists(store, "t", "u", "v")
    make(store, PATIENT, "s", display_name="Bob Gray", identifiers=with_identifiers("1", "2"))
    make(store, PATIENT, "p", display_name="Bob Ray", identifiers=with_identifiers("3"))
    return store
