from collections.abc import Callable

import pytest
from caseload_server.domain import enums, errors, limits, requests, results
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_calls import (
    CALL,
    AnyKind,
    assign,
    both_kinds,
    delete,
    ids,
    make,
    make_pair,
    other,
    unassign,
    update,
)

MRN = ("urn:mrn", "1")
WITH_MRN = '[["urn:mrn","1"]]'


@both_kinds
def test_a_delete_hides_the_record_from_lists_and_keeps_it_readable(
    store: RelationshipStore, clock: Clock, kind: AnyKind
) -> None:
    before = make(store, kind, "a")
    clock.advance(1)
    outcome = delete(store, kind, "a")
    now = clock.now_us
    assert outcome.record == before._replace(deleted_us=now, updated_us=now, etag=outcome.record.etag)
    assert outcome.ended_count == 0
    assert store.get(kind, "a") == outcome.record
    assert ids(store, kind) == []
    assert ids(store, kind, show_deleted=True) == ["a"]


@both_kinds
def test_deleting_twice_writes_once(store: RelationshipStore, clock: Clock, kind: AnyKind) -> None:
    make(store, kind, "a")
    first = delete(store, kind, "a")
    clock.advance(1)
    assert delete(store, kind, "a") == first


@both_kinds
def test_deleting_an_unknown_record_succeeds_with_allow_missing(store: RelationshipStore, kind: AnyKind) -> None:
    head = make(store, kind, "a") and store.list_records(kind, requests.RecordQuery(), requests.PageRequest(1, ""))
    assert delete(store, kind, "missing", allow_missing=True) == results.DeleteResult(None, 0, head.revision)


@both_kinds
def test_a_delete_with_an_old_etag_is_rejected(store: RelationshipStore, kind: AnyKind) -> None:
    old = make(store, kind, "a").etag
    new = update(store, kind, "a", email="a@b")
    with pytest.raises(errors.EtagMismatch):
        delete(store, kind, "a", etag=old)
    assert store.get(kind, "a") == new
    assert delete(store, kind, "a", etag=new.etag).record.deleted_us


@both_kinds
def test_a_delete_frees_the_identifiers_and_an_undelete_takes_them_back(
    store: RelationshipStore, kind: AnyKind
) -> None:
    make(store, kind, "a", identifiers=WITH_MRN)
    delete(store, kind, "a")
    make(store, kind, "b", identifiers=WITH_MRN)
    deleted = store.get(kind, "a")
    with pytest.raises(errors.IdentifierTaken):
        store.undelete(kind, "a", CALL)
    assert store.get(kind, "a") == deleted
    update(store, kind, "b", identifiers="[]")
    assert store.undelete(kind, "a", CALL).record.identifiers == WITH_MRN
    with pytest.raises(errors.IdentifierTaken):
        update(store, kind, "b", identifiers=WITH_MRN)


@both_kinds
def test_an_undelete_can_release_the_identifiers_that_others_have(store: RelationshipStore, kind: AnyKind) -> None:
    mixed = '[["urn:mrn","2"],["urn:mrn","1"],["urn:mrn","Zoë"]]'
    make(store, kind, "a", identifiers=mixed)
    delete(store, kind, "a")
    make(store, kind, "b", identifiers=WITH_MRN)
    assert store.undelete(kind, "a", CALL, release_identifiers=True).record.identifiers == (
        '[["urn:mrn","2"],["urn:mrn","Zoë"]]'
    )
    assert ids(store, kind, identifier=MRN) == ["b"]
    for value in ("2", "Zoë"):
        assert ids(store, kind, identifier=("urn:mrn", value)) == ["a"]
        with pytest.raises(errors.IdentifierTaken):
            update(store, kind, "b", identifiers=f'[["urn:mrn","{value}"]]')
    delete(store, kind, "b")
    assert store.get(kind, "a").identifiers == '[["urn:mrn","2"],["urn:mrn","Zoë"]]'  # what was released stays so


@both_kinds
def test_an_undelete_keeps_the_identifiers_that_nobody_else_has(store: RelationshipStore, kind: AnyKind) -> None:
    before = make(store, kind, "a", identifiers=WITH_MRN)
    delete(store, kind, "a")
    after = store.undelete(kind, "a", CALL, release_identifiers=True).record
    assert after == before._replace(etag=after.etag)
    assert ids(store, kind, identifier=MRN) == ["a"]


@both_kinds
def test_a_live_record_keeps_its_identifiers_when_it_is_undeleted(store: RelationshipStore, kind: AnyKind) -> None:
    before = make(store, kind, "a", identifiers=WITH_MRN)
    assert store.undelete(kind, "a", CALL, release_identifiers=True).record == before


@both_kinds
def test_a_taken_identifier_names_its_holder(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "gone", identifiers=WITH_MRN)
    delete(store, kind, "gone")
    make(store, kind, "holder", identifiers=WITH_MRN)
    make(store, kind, "c")
    tries: list[Callable[[], object]] = [
        lambda: make(store, kind, "d", identifiers=WITH_MRN),
        lambda: update(store, kind, "c", identifiers=WITH_MRN),
        lambda: store.undelete(kind, "gone", CALL),
    ]
    for attempt in tries:
        with pytest.raises(errors.IdentifierTaken) as refusal:
            attempt()
        assert refusal.value.resources == (errors.Resource(f"caseload.v1.{kind.record.__name__}", "holder"),)
        assert refusal.value.metadata == {}


@both_kinds
def test_a_list_finds_all_deleted_records_with_the_same_identifier(store: RelationshipStore, kind: AnyKind) -> None:
    for name in "abc":
        make(store, kind, name, identifiers=WITH_MRN)
        if name != "c":
            delete(store, kind, name)
    assert ids(store, kind, identifier=MRN) == ["c"]
    assert ids(store, kind, identifier=MRN, show_deleted=True) == ["a", "b", "c"]


@both_kinds
def test_an_undelete_restores_everything_but_the_delete_time(
    store: RelationshipStore, clock: Clock, kind: AnyKind
) -> None:
    before = make(store, kind, "a", email="a@b", identifiers=WITH_MRN)
    delete(store, kind, "a")
    clock.advance(1)
    outcome = store.undelete(kind, "a", CALL)
    assert outcome.record == before._replace(updated_us=clock.now_us, etag=outcome.record.etag)
    assert ids(store, kind) == ["a"]
    clock.advance(1)
    assert store.undelete(kind, "a", CALL) == outcome


@both_kinds
def test_a_record_with_active_assignments_is_not_deleted(store: RelationshipStore, kind: AnyKind) -> None:
    make_pair(store)
    assign(store)
    record_id = kind.name[0]
    before = store.get(kind, record_id)
    with pytest.raises(errors.HasActiveAssignments) as refusal:
        delete(store, kind, record_id)
    assert refusal.value.metadata == {"count": "1"}
    assert store.get(kind, record_id) == before
    unassign(store)
    assert delete(store, kind, record_id).record.deleted_us


@both_kinds
def test_a_forced_delete_ends_the_assignments_on_both_sides(
    store: RelationshipStore, clock: Clock, kind: AnyKind
) -> None:
    make_pair(store)
    for name in ("t2", "t3"):
        make(store, THERAPIST, name)
        assign(store, name, "p")
    make(store, PATIENT, "p2")
    assign(store, "t", "p2", role=enums.ROLE_PRIMARY)
    period = assign(store)
    clock.advance(1)
    gone, ended = ("t", 2) if kind is THERAPIST else ("p", 3)
    assert delete(store, kind, gone, force=True).ended_count == ended
    query = requests.CaseloadQuery("p", states=(enums.STATE_ENDED,))
    periods = [
        assignment for assignment, _ in store.list_patient_therapists(query, requests.PageRequest(9, "")).records
    ]
    assert len(periods) == (1 if kind is THERAPIST else 3)
    after = next(one for one in periods if one.assignment_id == period.assignment_id)
    assert after == period._replace(
        end_us=clock.now_us,
        end_reason=enums.END_RECORD_DELETED,
        ended_by=CALL.actor,
        updated_us=clock.now_us,
        etag=after.etag,
    )
    assert after.etag != period.etag
    expected = {"t": 0, "t2": 1, "t3": 1} if kind is THERAPIST else {"t": 1, "t2": 0, "t3": 0}
    assert {name: store.get(THERAPIST, name).active_patient_count for name in expected} == expected
    assert store.get(PATIENT, "p").active_therapist_count == (2 if kind is THERAPIST else 0)
    assert store.get(PATIENT, "p2").primary_therapist_id == ("" if kind is THERAPIST else "t")


@both_kinds
def test_an_undelete_leaves_the_ended_assignments_ended(store: RelationshipStore, kind: AnyKind) -> None:
    make_pair(store)
    assign(store)
    delete(store, kind, kind.name[0], force=True)
    assert getattr(store.undelete(kind, kind.name[0], CALL).record, kind.count_column) == 0


@both_kinds
def test_a_forced_delete_is_bounded_by_the_limit_of_one_call(
    store: RelationshipStore, kind: AnyKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_ASSIGNMENTS_PER_CALL", 2)
    make(store, kind, "a")
    for name in ("x", "y", "z"):
        make(store, other(kind), name)
        assign(store, *(("a", name) if kind is THERAPIST else (name, "a")))
    before = store.get(kind, "a")
    with pytest.raises(errors.TooManyAssignments) as refusal:
        delete(store, kind, "a", force=True)
    assert refusal.value.metadata == {"limit": "2", "current": "3"}
    assert store.get(kind, "a") == before
    unassign(store, *(("a", "x") if kind is THERAPIST else ("x", "a")))
    assert delete(store, kind, "a", force=True).ended_count == 2
