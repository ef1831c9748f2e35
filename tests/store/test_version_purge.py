"""A purge erases old versions, and the versions of the people that it erases."""

import json

import pytest
from caseload_server.domain import enums
from caseload_server.domain.records import Change
from caseload_server.domain.requests import ChangeQuery
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.protocol import Value

from tests.store import older_instance
from tests.store.conftest import Clock
from tests.store.store_calls import CALL, TABLES, AnyKind, assign, both_kinds, broken, delete, head, make, run, update
from tests.store.version_replay import current_state, replayed_state

CANARY = "Zebrafinch"
VERSIONS = ("therapist_version", "patient_version", "assignment_version")


def kept(store: RelationshipStore) -> list[int]:
    """The revisions at which the kept versions ended."""
    rows = [row for table in VERSIONS for row in run(store, f"SELECT to_revision FROM {table}")]
    return sorted(row[0] for row in rows)


def complete_since(store: RelationshipStore) -> tuple[int, int]:
    """The revision and the time since which versions are complete."""
    [row] = run(store, "SELECT versions_revision, versions_us FROM store")
    return row[0], row[1]


@pytest.fixture
def changed(pair: RelationshipStore, clock: Clock) -> RelationshipStore:
    """A version ended at each of the revisions 4, 6 and 7, a second apart; 5 began an assignment."""
    for step in (
        lambda: update(pair, PATIENT, "p", email="1@example.org"),
        lambda: assign(pair),
        lambda: pair.correct(assignment_id(pair), "", {"focus": "grief"}, CALL),
        lambda: update(pair, THERAPIST, "t", email="2@example.org"),
    ):
        clock.advance(1)
        step()
    return pair


def assignment_id(store: RelationshipStore) -> str:
    return str(run(store, "SELECT assignment_id FROM assignment")[0][0])


def test_a_purge_erases_the_versions_that_ended_before_a_time(changed: RelationshipStore, clock: Clock) -> None:
    state = current_state(changed)
    assert kept(changed) == [4, 6, 7]
    assert changed.purger.purge_versions(clock() - 500_000) == 2
    assert kept(changed) == [7]
    assert complete_since(changed) == (6, clock() - 1_000_000)
    assert broken(changed) == []
    update(changed, PATIENT, "p", email="3@example.org")
    assert replayed_state(changed, 7) == state


def test_a_purge_of_versions_is_recorded_in_the_change_log(changed: RelationshipStore, clock: Clock) -> None:
    changed.purger.purge_versions(clock() - 500_000)
    record = changed.list_changes(ChangeQuery(), "", 1000).change_sets[-1]
    through = changed.keys.revision(6)
    assert (record.actor, record.method, record.committed_us) == ("cli:purge", "", clock())
    assert record.changes == [Change(enums.CHANGE_VERSIONS_PURGED, "", None, None, None, through)]


def test_a_purge_that_erases_nothing_records_nothing(changed: RelationshipStore, clock: Clock) -> None:
    assert changed.purger.purge_versions(clock() - 10_000_000) == 0
    assert changed.purger.purge_versions(clock() + 1) == 3
    before = head(changed), complete_since(changed)
    assert changed.purger.purge_versions(clock() + 1) == 0
    assert (head(changed), complete_since(changed)) == before


def test_versions_can_be_purged_after_the_change_log_was(changed: RelationshipStore, clock: Clock) -> None:
    changed.purger.purge_changes(2**62)
    assert kept(changed) == [4, 6, 7]
    assert changed.purger.purge_versions(clock() - 500_000) == 2
    assert kept(changed) == [7]
    assert complete_since(changed) == (6, clock() - 1_000_000)
    assert broken(changed) == []


def test_a_purge_moves_the_time_of_complete_versions_past_a_clock_that_was_ahead(
    changed: RelationshipStore, clock: Clock
) -> None:
    """An older server had moved the revision already, by a clock that was behind."""
    ahead_us = clock()
    older_instance.update_email(changed, "p", "older@example.org", clock.step(-10))
    assert complete_since(changed) == (8, clock())
    assert changed.purger.purge_versions(2**62) == 3
    assert complete_since(changed) == (8, ahead_us)
    assert list(changed.key_catch_up.run()) == [1]
    assert broken(changed) == []


def test_many_versions_are_purged_in_batches(changed: RelationshipStore, clock: Clock) -> None:
    """Revisions without versions, and one with many, are no obstacle."""
    for table, record_id, extra in (("patient", "p", "''"), ("therapist", "t", "")):
        columns = f"{table}_id, to_revision, to_us, " + ("merged_into_patient_id, " if extra else "") + "image"
        values = f"'{record_id}', CAST(atom AS INTEGER), :to_us, {extra + ', ' if extra else ''}'{{}}'"
        many: dict[str, Value] = {"many": json.dumps(list(range(8, 1508))), "to_us": clock()}
        run(changed, f"INSERT INTO {table}_version ({columns}) SELECT {values} FROM json_each(:many)", many)
    run(changed, "UPDATE store SET head_revision = 1507")
    columns = "committed_us, actor, on_behalf_of, method, request_id, hash_version, hash"
    copy = f"INSERT INTO change_set (revision, {columns}) SELECT 1507, {columns} FROM change_set WHERE revision = 7"
    run(changed, copy)
    batches: list[int] = []
    assert changed.purger.purge_versions(clock() + 1, batches.append) == sum(batches) == 3003
    assert max(batches) <= 1001
    assert len(batches) == 4
    assert complete_since(changed) == (1507, clock())


@both_kinds
def test_a_purge_of_a_person_erases_their_versions(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, THERAPIST, "t", display_name=CANARY if kind is THERAPIST else "Ada")
    make(store, PATIENT, "p", display_name=CANARY if kind is PATIENT else "Ada")
    update(store, kind, kind.name[0], display_name="Ann Lee", aliases=f'["{CANARY}"]')
    period = assign(store)
    store.correct(period.assignment_id, "", {"focus": CANARY.lower()}, CALL)
    update(store, kind, kind.name[0], aliases="[]")
    delete(store, kind, kind.name[0], force=True)
    assert CANARY in content(store)
    store.purger.purge_record(kind, kind.name[0])
    assert CANARY.lower() not in content(store).lower()
    assert broken(store) == []


def test_a_purge_by_an_older_server_erases_versions_too(changed: RelationshipStore) -> None:
    run(changed, "DELETE FROM assignment")
    run(changed, "DELETE FROM patient")
    assert kept(changed) == [7]


def content(store: RelationshipStore) -> str:
    """Everything in the database, as text."""
    return repr([run(store, f"SELECT * FROM {table}") for table in TABLES])
