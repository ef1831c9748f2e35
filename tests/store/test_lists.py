from typing import Any

import pytest
from caseload_server.domain import enums, errors, requests, results
from caseload_server.domain.requests import CaseloadQuery, RecordQuery
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_calls import (
    ALL,
    CALL,
    AnyKind,
    assign,
    assigned,
    both_kinds,
    delete,
    ids,
    make,
    make_pair,
    other,
    unassign,
    update,
    walk,
)


@both_kinds
def test_an_empty_store_lists_nothing(store: RelationshipStore, kind: AnyKind) -> None:
    page = store.list_records(kind, RecordQuery(), ALL)
    assert (page.records, page.next_after) == ([], "")


@both_kinds
def test_pages_are_ordered_by_id_and_the_last_one_has_no_successor(store: RelationshipStore, kind: AnyKind) -> None:
    for name in ("b", "a-1", "a", "9", "a1", "c"):
        make(store, kind, name)
    pages = [[record[0] for record in page] for page in walk(store, kind, RecordQuery(), 2)]
    assert pages == [["9", "a"], ["a-1", "a1"], ["b", "c"]]
    assert [len(page) for page in walk(store, kind, RecordQuery(), 6)] == [6]
    assert [len(page) for page in walk(store, kind, RecordQuery(), 5)] == [5, 1]


@both_kinds
def test_a_list_returns_whole_records_and_the_revision_it_was_read_at(store: RelationshipStore, kind: AnyKind) -> None:
    created = store.create(kind, "a", {"display_name": "Ada", "identifiers": '[["urn:mrn","1"]]'}, CALL)
    page = store.list_records(kind, RecordQuery(), ALL)
    assert page == results.Page([created.record], "", created.revision)


@both_kinds
def test_statuses_are_alternatives(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "active")
    make(store, kind, "second", status=2)
    assert ids(store, kind, statuses=(1,)) == ["active"]
    assert ids(store, kind, statuses=(2,)) == ["second"]
    assert ids(store, kind, statuses=(1, 2)) == ["active", "second"]


@both_kinds
def test_the_unassigned_filter_finds_records_without_an_active_assignment(
    store: RelationshipStore, kind: AnyKind
) -> None:
    make_pair(store)
    record_id = kind.name[0]
    assert ids(store, kind, unassigned=True) == [record_id]
    assign(store)
    assert ids(store, kind, unassigned=True) == []
    unassign(store)
    assert ids(store, kind, unassigned=True) == [record_id]
    delete(store, kind, record_id)
    assert ids(store, kind, unassigned=True) == []
    assert ids(store, kind, unassigned=True, show_deleted=True) == [record_id]


def test_specialties_are_alternatives_and_follow_an_update(store: RelationshipStore) -> None:
    make(store, THERAPIST, "both", specialties='["cbt","hand-therapy"]')
    make(store, THERAPIST, "one", specialties='["cbt"]')
    make(store, THERAPIST, "none")
    assert ids(store, THERAPIST, specialties=("cbt",)) == ["both", "one"]
    assert ids(store, THERAPIST, specialties=("cbt", "hand-therapy")) == ["both", "one"]
    assert ids(store, THERAPIST, specialties=("hand",)) == []
    update(store, THERAPIST, "one", specialties='["gait"]')
    assert ids(store, THERAPIST, specialties=("cbt", "gait")) == ["both", "one"]
    assert ids(store, THERAPIST, specialties=("cbt",)) == ["both"]


def test_the_accepting_filter_finds_therapists_who_can_be_assigned_now(store: RelationshipStore) -> None:
    make(store, PATIENT, "p")
    make(store, THERAPIST, "unbounded")
    make(store, THERAPIST, "room", max_active_patients=2)
    make(store, THERAPIST, "full", max_active_patients=1)
    make(store, THERAPIST, "none", max_active_patients=0)
    make(store, THERAPIST, "leave", status=2)
    make(store, THERAPIST, "inactive", status=3)
    make(store, THERAPIST, "deleted")
    delete(store, THERAPIST, "deleted")
    for name in ("unbounded", "room", "full"):
        assign(store, name, "p")
    accepting = ids(store, THERAPIST, accepting_patients=True, show_deleted=True)
    assert accepting == ["room", "unbounded"]
    make(store, PATIENT, "next")
    for name in ("unbounded", "room", "full", "none", "leave", "inactive", "deleted"):
        try:
            assign(store, name, "next")
        except errors.DomainError:
            assert name not in accepting
        else:
            assert name in accepting


def test_all_filters_apply_together(store: RelationshipStore) -> None:
    fits: requests.Fields = {
        "display_name": "Ada Lovelace",
        "identifiers": '[["urn:npi","1"]]',
        "specialties": '["cbt"]',
        "max_active_patients": 1,
    }
    query = RecordQuery(
        name_prefix="love",
        statuses=(1,),
        identifier=("urn:npi", "1"),
        unassigned=True,
        specialties=("cbt", "gait"),
        accepting_patients=True,
        show_deleted=True,
    )
    make(store, THERAPIST, "a", **fits)
    assert ids(store, THERAPIST, **query._asdict()) == ["a"]
    for spoiled in (
        {"display_name": "Ada King"},
        {"identifiers": '[["urn:npi","2"]]'},
        {"specialties": "[]"},
        {"max_active_patients": 0},
        {"status": 2},
    ):
        update(store, THERAPIST, "a", **spoiled)
        assert ids(store, THERAPIST, **query._asdict()) == [], spoiled
        update(store, THERAPIST, "a", **{"status": 1, **fits})
    make(store, PATIENT, "p")
    assign(store, "a", "p", ignore_capacity=True)
    assert ids(store, THERAPIST, **query._asdict()) == []


# Assignments of one side.


@both_kinds
def test_the_assignments_of_a_record_that_never_existed_are_not_found(store: RelationshipStore, kind: AnyKind) -> None:
    with pytest.raises(kind.not_found):
        assigned(store, kind, CaseloadQuery("missing"))


@both_kinds
def test_each_side_sees_the_assignment_with_the_other_record(store: RelationshipStore, kind: AnyKind) -> None:
    make_pair(store)
    period = assign(store)
    other_id = other(kind).name[0]
    page = assigned(store, kind, CaseloadQuery(kind.name[0]))
    assert page.records == [(period, store.get(other(kind), other_id))]
    assert page.revision == store.list_records(kind, RecordQuery(), ALL).revision


@both_kinds
def test_assignments_are_listed_by_role_and_state(store: RelationshipStore, kind: AnyKind) -> None:
    make_pair(store)
    ended = assign(store)
    unassign(store)
    active = assign(store, role=enums.ROLE_PRIMARY)

    def listed(**query: Any) -> list[str]:
        return [entry[0].assignment_id for entry in assigned(store, kind, CaseloadQuery(kind.name[0], **query)).records]

    assert listed() == [active.assignment_id]
    assert listed(states=(enums.STATE_ACTIVE,)) == [active.assignment_id]
    assert listed(states=(enums.STATE_ENDED,)) == [ended.assignment_id]
    assert listed(states=(enums.STATE_ACTIVE, enums.STATE_ENDED)) == [ended.assignment_id, active.assignment_id]
    assert listed(roles=(enums.ROLE_PRIMARY, enums.ROLE_TREATING)) == [active.assignment_id]
    assert listed(roles=(enums.ROLE_TREATING,)) == []
    assert listed(roles=(enums.ROLE_TREATING,), states=(enums.STATE_ENDED,)) == [ended.assignment_id]


@both_kinds
def test_the_assignments_of_a_deleted_record_can_still_be_listed(store: RelationshipStore, kind: AnyKind) -> None:
    make_pair(store)
    period = assign(store)
    delete(store, kind, kind.name[0], force=True)
    assert assigned(store, kind, CaseloadQuery(kind.name[0])).records == []
    page = assigned(store, kind, CaseloadQuery(kind.name[0], states=(enums.STATE_ENDED,)))
    assert [entry[0].assignment_id for entry in page.records] == [period.assignment_id]


@both_kinds
def test_the_other_record_is_returned_as_it_is_now_even_when_deleted(
    store: RelationshipStore, clock: Clock, kind: AnyKind
) -> None:
    make_pair(store)
    assign(store)
    then = clock.now_us
    clock.advance(1)
    other_id = other(kind).name[0]
    update(store, other(kind), other_id, display_name="Renamed")
    delete(store, other(kind), other_id, force=True)
    page = assigned(store, kind, CaseloadQuery(kind.name[0], as_of_us=then))
    assert [entry[1] for entry in page.records] == [store.get(other(kind), other_id)]
