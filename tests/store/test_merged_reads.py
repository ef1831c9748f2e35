"""What reads find after a merge, by the id of either record."""

from caseload_server.domain.requests import AssignmentQuery, CaseloadQuery, ChangeQuery, RecordQuery
from caseload_server.store import PATIENT, RelationshipStore

from tests.store.conftest import Clock
from tests.store.merge_setup import checked, merge, unmerge
from tests.store.store_calls import ALL, assign, history, in_force, make, run, unassign
from tests.store.transfer_setup import COVERING, SUPERVISING


def test_a_check_of_either_id_covers_both_records(people: RelationshipStore, clock: Clock) -> None:
    past = clock.now_us
    old = assign(people, "u", "s")
    unassign(people, "u", "s", end_us=clock.advance(10))
    assign(people, "t", "s")
    own = assign(people, "v", "p")
    now = clock.advance(10)
    [active] = merge(people).active
    pairs = [(therapist, patient) for patient in ("s", "p", "x") for therapist in ("t", "u", "v")]
    assert checked(people, now, *pairs) == [active.assignment_id, None, own.assignment_id] * 2 + [None] * 3
    assert checked(people, past, *pairs) == [None, old.assignment_id, None] * 2 + [None] * 3


def test_the_given_record_comes_first_in_a_check(people: RelationshipStore, clock: Clock) -> None:
    own = assign(people, "t", "p", role=COVERING)
    other = assign(people, "t", "s", role=SUPERVISING)
    past = clock.now_us
    clock.advance(10)
    merge(people)
    assert checked(people, past, ("t", "s"), ("t", "p")) == [other.assignment_id, own.assignment_id]
    make(people, PATIENT, "q")
    merge(people, "p", "q")
    assert checked(people, past, ("t", "q")) == [other.assignment_id]  # the lowest role


def test_lists_as_of_a_time_cover_both_records_and_other_lists_one(people: RelationshipStore, clock: Clock) -> None:
    assign(people, "t", "s")
    assign(people, "u", "p")
    past = clock.now_us
    now = clock.advance(10)
    [active] = merge(people).active
    for patient_id in ("s", "p"):
        for at_us, found in ((past, {"t": "s", "u": "p"}), (now, {"t": "p", "u": "p"})):
            query = AssignmentQuery(patient_id=patient_id, as_of_us=at_us)
            rows = people.list_assignments(query, ALL).records
            assert {one.therapist_id: one.patient_id for one in rows} == found
            assert in_force(people, at_us, record_id=patient_id) == [one.assignment_id for one in rows]
            both = query._replace(therapist_id="t")
            assert [one.patient_id for one in people.list_assignments(both, ALL).records] == [found["t"]]
    assert [one.patient_id for one in people.list_assignments(AssignmentQuery(patient_id="s"), ALL).records] == []
    assert people.list_patient_therapists(CaseloadQuery("s"), ALL).records == []
    assert active.assignment_id in [one.assignment_id for one in history(people, "p")]


def test_checks_and_lists_follow_a_chain_of_merges(people: RelationshipStore, clock: Clock) -> None:
    make(people, PATIENT, "q")
    make(people, PATIENT, "r")
    old = assign(people, "t", "s")
    past = clock.now_us
    clock.advance(10)
    merge(people)
    merge(people, "r", "p")
    merge(people, "p", "q")
    for patient_id in "spqr":
        assert checked(people, past, ("t", patient_id)) == [old.assignment_id]
        assert in_force(people, past, record_id=patient_id) == [old.assignment_id]
        assert len(checked(people, clock.now_us, ("t", patient_id))) == 1
        assert None not in checked(people, clock.now_us, ("t", patient_id))
    unmerge(people, "p")
    assert [checked(people, past, ("t", one))[0] for one in "sprq"] == [old.assignment_id] * 3 + [None]
    assert checked(people, clock.now_us, ("t", "q")) != [None]
    unmerge(people)
    unmerge(people, "r")
    assert [checked(people, past, ("t", one))[0] for one in "sprq"] == [old.assignment_id, None, None, None]
    assert run(people, "SELECT * FROM same_person") == []


def test_the_changes_of_a_merge_are_listed_under_both_ids(people: RelationshipStore) -> None:
    revision = merge(people).revision
    for patient_id in ("s", "p"):
        page = people.list_changes(ChangeQuery(patient_id=patient_id), "", 100)
        assert page.change_sets[-1].revision == revision


def test_a_search_by_name_finds_the_source_only_among_deleted_records(people: RelationshipStore) -> None:
    merge(people)
    query = RecordQuery(identifier=("mrn", "1"), show_deleted=True)
    assert [one.patient_id for one in people.list_records(PATIENT, query, ALL).records] == ["p", "s"]
