"""Lists of versions: what a record was, from when to when, and who changed it."""

import json
from typing import Any

import pytest
from caseload_server.domain import errors
from caseload_server.domain.enums import ROLE_PRIMARY
from caseload_server.domain.limits import MAX_PAGE_BYTES
from caseload_server.domain.requests import CallContext, Delete, PageRequest, Update
from caseload_server.domain.results import RecordVersion, VersionPage
from caseload_server.store import (
    ASSIGNMENT_HISTORY,
    PATIENT,
    PATIENT_HISTORY,
    THERAPIST,
    THERAPIST_HISTORY,
    RelationshipStore,
)
from caseload_server.store.versions import History

from tests.store import older_instance
from tests.store.conftest import Clock
from tests.store.merge_setup import merge, unmerge
from tests.store.store_calls import ALL, CALL, assign, both_kinds, head, make, make_pair, run, unassign, update

LARGE_BYTES = 31 * 1024
FRONT_DESK = CallContext("front-desk", "/caseload.v1.PatientService/UpdatePatient", on_behalf_of="jdoe")


def history_of(kind: Any) -> History[Any]:
    return THERAPIST_HISTORY if kind is THERAPIST else PATIENT_HISTORY


def versions(store: RelationshipStore, history: History[Any], record_id: str, size: int = 1000) -> list[Any]:
    """All pages, as one list."""
    found: list[RecordVersion[Any]] = []
    after = ""
    while True:
        page: VersionPage[Any] = store.list_versions(history, record_id, PageRequest(size, after))
        assert len(page.versions) == size or not page.next_after
        found += page.versions
        after = page.next_after
        if not after:
            return found


def complete_since(store: RelationshipStore, revision: int, at_us: int) -> None:
    """Pretends that versions are complete for the changes after a revision only."""
    run(
        store,
        "UPDATE store SET versions_revision = :revision, versions_us = :at_us",
        {"revision": revision, "at_us": at_us},
    )


@both_kinds
def test_a_list_says_what_was_purged_though_a_clock_was_ahead(
    store: RelationshipStore, clock: Clock, kind: Any
) -> None:
    clock.step(100)
    make(store, kind, "a")
    clock.step(-50)
    update(store, kind, "a", display_name="Eve")
    page: VersionPage[Any] = store.list_versions(history_of(kind), "a", ALL)
    assert (page.oldest_revision, page.oldest_us) == ("", None)
    store.purger.purge_versions(clock() + 1)
    page = store.list_versions(history_of(kind), "a", ALL)
    assert (page.oldest_revision, page.oldest_us) == (store.keys.revision(2), clock())


@both_kinds
def test_the_versions_of_a_person_are_the_record_after_each_change(
    store: RelationshipStore, clock: Clock, kind: Any
) -> None:
    created = make(store, kind, "a", annotations='{"k":"v"}')
    first = head(store)
    clock.advance(10)
    renamed = store.update(kind, Update("a", {"display_name": "Ada King"}), FRONT_DESK).record
    clock.advance(10)
    deleted = store.delete(kind, Delete("a"), CALL).record
    found = versions(store, history_of(kind), "a")
    assert [one.record for one in found] == [deleted, renamed, created]
    revision = store.keys.revision
    spans = [(one.from_revision, one.from_us, one.to_revision, one.to_us) for one in found]
    assert spans == [
        (revision(first + 2), clock.now_us, "", None),
        (revision(first + 1), clock.now_us - 10_000_000, revision(first + 2), clock.now_us),
        (revision(first), clock.now_us - 20_000_000, revision(first + 1), clock.now_us - 10_000_000),
    ]
    assert [(one.actor, one.on_behalf_of) for one in found] == [
        ("reception", ""),
        ("front-desk", "jdoe"),
        ("reception", ""),
    ]


def test_the_versions_of_an_assignment_are_its_periods(pair: RelationshipStore, clock: Clock) -> None:
    begun = assign(pair)
    assign(pair, "u", "p")  # a change of the same patient
    clock.advance(10)
    corrected = pair.correct(begun.assignment_id, "", {"focus": "grief"}, FRONT_DESK).record
    ended = unassign(pair)
    found = versions(pair, ASSIGNMENT_HISTORY, begun.assignment_id)
    assert [one.record for one in found] == [ended, corrected, begun]
    assert [one.actor for one in found] == ["reception", "front-desk", "reception"]
    assert found[0].from_revision == pair.keys.revision(head(pair))


@both_kinds
def test_changes_of_assignments_are_no_versions_of_their_people(pair: RelationshipStore, kind: Any) -> None:
    record_id = kind.name[0]
    assign(pair, role=ROLE_PRIMARY)
    update(pair, kind, record_id, email="ada@example.org")
    revision = pair.keys.revision(head(pair))
    unassign(pair)
    new, old = versions(pair, history_of(kind), record_id)
    assert (new.record.email, old.record.email) == ("ada@example.org", "")
    assert new.from_revision == old.to_revision == revision
    for one in (new, old):
        assert getattr(one.record, kind.count_column) == 0
        assert getattr(one.record, "primary_therapist_id", "") == ""


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_each_version_is_on_one_page(store: RelationshipStore, size: int) -> None:
    make(store, PATIENT, "p")
    names = [f"Ada {number}" for number in range(5)]
    for name in names:
        update(store, PATIENT, "p", display_name=name)
    found = versions(store, PATIENT_HISTORY, "p", size)
    assert [one.record.display_name for one in found] == [*names[::-1], "Ada Lovelace"]


def test_a_change_between_the_pages_repeats_no_version(store: RelationshipStore) -> None:
    make(store, PATIENT, "p")
    update(store, PATIENT, "p", display_name="Ada King")
    first = store.list_versions(PATIENT_HISTORY, "p", PageRequest(1, ""))
    update(store, PATIENT, "p", display_name="Ada Byron")
    second = store.list_versions(PATIENT_HISTORY, "p", PageRequest(10, first.next_after))
    names = [one.record.display_name for one in [*first.versions, *second.versions]]
    assert names == ["Ada King", "Ada Lovelace"]


def test_a_page_of_large_versions_ends_early(store: RelationshipStore) -> None:
    make(store, PATIENT, "p")
    for number in range(MAX_PAGE_BYTES // LARGE_BYTES + 10):
        update(store, PATIENT, "p", annotations=json.dumps({"k": f"{number}".ljust(LARGE_BYTES)}))
    page = store.list_versions(PATIENT_HISTORY, "p", ALL)
    assert MAX_PAGE_BYTES // LARGE_BYTES - 5 < len(page.versions) <= MAX_PAGE_BYTES // LARGE_BYTES
    assert page.next_after


def test_a_merge_and_its_reversal_are_versions_of_both_records(people: RelationshipStore) -> None:
    merge(people)
    unmerge(people)
    links = [one.record.merged_into_patient_id for one in versions(people, PATIENT_HISTORY, "s")]
    assert links == ["", "p", ""]
    counts = [one.record.identifiers.count("mrn") for one in versions(people, PATIENT_HISTORY, "p")]
    assert counts == [1, 3, 1]


@both_kinds
def test_without_the_change_log_a_version_begins_where_the_one_before_ended(
    store: RelationshipStore, clock: Clock, kind: Any
) -> None:
    make(store, kind, "a")
    for name in ("Ada King", "Ada Byron"):
        clock.advance(10)
        update(store, kind, "a", display_name=name)
    logged = versions(store, history_of(kind), "a")
    store.purger.purge_changes(clock.advance(10))
    unlogged = versions(store, history_of(kind), "a")
    nobody = [one._replace(actor="", on_behalf_of="") for one in logged]
    assert unlogged == [*nobody[:-1], nobody[-1]._replace(from_revision="")]


def test_a_version_does_not_begin_at_a_change_that_kept_no_version(store: RelationshipStore, clock: Clock) -> None:
    """As where an instance of the earlier version made the last change."""
    make(store, PATIENT, "p")
    update(store, PATIENT, "p", display_name="Ada King")
    clock.advance(10)
    update(store, PATIENT, "p", display_name="Ada Byron")
    run(store, "DELETE FROM patient_version WHERE to_revision = :head", {"head": head(store)})
    found = versions(store, PATIENT_HISTORY, "p")
    assert [one.from_revision for one in found] == [store.keys.revision(head(store) - back) for back in (0, 2)]
    store.purger.purge_changes(clock.advance(10))
    assert [one.from_revision for one in versions(store, PATIENT_HISTORY, "p")] == ["", ""]


def test_the_versions_of_a_record_are_complete_since_its_creation_or_since_versions_are_kept(
    store: RelationshipStore, clock: Clock
) -> None:
    make_pair(store)
    page = store.list_versions(PATIENT_HISTORY, "p", ALL)
    assert (page.oldest_revision, page.oldest_us) == ("", None)
    complete_since(store, head(store), clock.now_us)
    clock.advance(10)
    make(store, PATIENT, "q")
    page = store.list_versions(PATIENT_HISTORY, "p", ALL)
    assert (page.oldest_revision, page.oldest_us) == (store.keys.revision(head(store) - 1), clock.now_us - 10_000_000)
    page = store.list_versions(PATIENT_HISTORY, "q", ALL)
    assert (page.oldest_revision, page.oldest_us) == ("", None)
    assert page.revision == store.keys.revision(head(store))


def test_versions_are_complete_since_the_latest_change_of_an_instance_that_keeps_none(
    store: RelationshipStore, clock: Clock
) -> None:
    make_pair(store)
    sql = """
INSERT INTO change_set (revision, committed_us, actor, method, request_id, hash_version)
VALUES (:revision, :committed_us, 'older', 'm', '', 1)"""
    times = (clock.now_us + 20, clock.now_us + 10)  # the clock of another instance is behind
    for revision, committed_us in enumerate(times, head(store) + 1):
        run(store, sql, {"revision": revision, "committed_us": committed_us})
    page = store.list_versions(PATIENT_HISTORY, "p", ALL)
    assert (page.oldest_revision, page.oldest_us) == (store.keys.revision(head(store) + 2), times[0])


def test_a_version_that_an_older_server_did_not_keep_is_said_to_be_missing_though_its_clock_was_behind(
    store: RelationshipStore, clock: Clock
) -> None:
    make(store, PATIENT, "p")
    update(store, PATIENT, "p", email="1@example.org")
    older_instance.update_email(store, "p", "older@example.org", clock.step(-10))
    page = store.list_versions(PATIENT_HISTORY, "p", ALL)
    assert (page.oldest_revision, page.oldest_us) == (store.keys.revision(3), clock())


@both_kinds
def test_an_unknown_or_purged_person_has_no_versions(store: RelationshipStore, clock: Clock, kind: Any) -> None:
    make(store, kind, "a")
    update(store, kind, "a", display_name="Ada King")
    store.delete(kind, Delete("a"), CALL)
    assert list(store.purger.purge_records(kind, clock.advance(10)))
    for record_id in ("a", "b"):
        with pytest.raises(kind.not_found) as caught:
            store.list_versions(history_of(kind), record_id, ALL)
        assert [one.name for one in caught.value.resources] == [record_id]


def test_an_unknown_assignment_has_no_versions(store: RelationshipStore) -> None:
    with pytest.raises(errors.AssignmentNotFound):
        store.list_versions(ASSIGNMENT_HISTORY, "0190a3c4-0000-7000-8000-000000000001", ALL)
