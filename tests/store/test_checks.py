"""CheckAssignments runs before every access to a chart: it must stay one statement over an index."""

from caseload_server.domain.enums import END_ENTERED_IN_ERROR, ROLE_PRIMARY
from caseload_server.store import RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_builders import SECOND, assign, patients, period, therapists, unassign

Pair = tuple[str, str]


def checked(store: RelationshipStore, at_us: int, *pairs: Pair) -> list[str | None]:
    checks, _ = store.check_assignments(list(pairs), at_us)
    assert [one.pair_index for one in checks] == list(range(len(pairs)))
    return [one.assignment_id for one in checks]


def test_a_check_returns_the_period_in_force_of_each_pair(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t", "u")
    patients(store, "p", "q")
    first = period(store, "t", "p", 100, 200).assignment_id
    second = period(store, "t", "p", 200, 300).assignment_id
    third = assign(store, "t", "p", start_us=400, role=ROLE_PRIMARY).assignment_id
    moments = {99: None, 100: first, 199: first, 200: second, 299: second, 300: None, 399: None, 400: third}
    for at_us, found in moments.items():
        assert checked(store, at_us, ("t", "p"), ("u", "p"), ("t", "q"), ("t", "p")) == [found, None, None, found]
    assert checked(store, clock.now_us, ("missing", "p"), ("t", "p"), ("t", "missing")) == [None, third, None]
    unassign(store, "t", "p", end_reason=END_ENTERED_IN_ERROR)
    assert checked(store, 500, ("t", "p")) == [None]


def test_a_period_with_a_future_end_is_in_force(store: RelationshipStore, clock: Clock) -> None:
    therapists(store, "t")
    patients(store, "p")
    one = assign(store, "t", "p").assignment_id
    unassign(store, "t", "p", end_us=clock.now_us + 5 * SECOND)
    found = [checked(store, clock.now_us + seconds * SECOND, ("t", "p")) for seconds in (0, 4, 5)]
    assert found == [[one], [one], [None]]


def test_a_check_returns_the_revision_it_was_read_at(store: RelationshipStore) -> None:
    therapists(store, "t")
    _, revision = store.check_assignments([("t", "p")], 0)
    assert revision == store.keys.revision(1)
