"""Merges lock patients first, then therapists, each in id order, and read what they change under these locks."""

from typing import Any

import psycopg
import pytest
from caseload_server.domain.requests import Merge
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.backends.postgres.record_locks import WAITING, locked_while_held
from tests.store.backends.postgres.shared_transactions import starting
from tests.store.store_calls import CALL, assign, make, request, run
from tests.support.waiting import eventually, join

RECORDS = [*(("patient", name) for name in "ab"), *(("therapist", name) for name in "ab")]


@pytest.fixture
def people(store: RelationshipStore) -> RelationshipStore:
    """Patients a and b; therapist b treats b, and therapist a treats a."""
    for name in "ab":
        make(store, PATIENT, name)
        make(store, THERAPIST, name)
    assign(store, "b", "b")
    assign(store, "a", "a")
    return store


@pytest.mark.parametrize("held", range(4), ids=[f"{table} {name}" for table, name in RECORDS])
@pytest.mark.parametrize("pair", [("a", "b"), ("b", "a")], ids=str)
def test_a_merge_locks_its_records_in_one_order(
    people: RelationshipStore, admin: "psycopg.Connection[Any]", held: int, pair: tuple[str, str]
) -> None:
    assert locked_while_held(admin, RECORDS, RECORDS[held], lambda: people.merge(Merge(*pair), CALL)) == RECORDS[:held]
    assert people.get(PATIENT, pair[0]).merged_into_patient_id == pair[1]


@pytest.mark.parametrize("held", range(2))
@pytest.mark.parametrize("pair", [("a", "b"), ("b", "a")], ids=str)
def test_an_unmerge_locks_both_patients_in_one_order(
    people: RelationshipStore, admin: "psycopg.Connection[Any]", held: int, pair: tuple[str, str]
) -> None:
    people.merge(Merge(*pair), CALL)
    assert locked_while_held(admin, RECORDS, RECORDS[held], lambda: people.unmerge(pair[0], CALL)) == RECORDS[:held]
    assert people.get(PATIENT, pair[0]).merged_into_patient_id == ""


@pytest.mark.parametrize("held", range(4), ids=[f"{table} {name}" for table, name in RECORDS])
def test_a_repeated_merge_or_unmerge_waits_for_no_lock(
    people: RelationshipStore, admin: "psycopg.Connection[Any]", held: int
) -> None:
    """It could deadlock: the order of its answer is not the order of the locks."""

    def revisions() -> list[str]:
        merged = people.merge(Merge("b", "a"), request("merge"))
        return [merged.revision, people.unmerge("b", request("unmerge")).revision]

    first = revisions()
    with admin.transaction():
        admin.execute(f"SELECT FROM {RECORDS[held][0]} WHERE {RECORDS[held][0]}_id = %s FOR UPDATE", [RECORDS[held][1]])
        assert revisions() == first


def test_an_unmerge_that_waited_sees_another_target(
    people: RelationshipStore, admin: "psycopg.Connection[Any]"
) -> None:
    """While it waits, others unmerge the source, and merge it into another record."""
    make(people, PATIENT, "c")
    people.merge(Merge("a", "b"), CALL)
    with admin.transaction():
        admin.execute("SELECT FROM patient WHERE patient_id = 'a' FOR UPDATE")
        running = starting(lambda: people.unmerge("a", CALL))
        eventually(lambda: admin.execute(WAITING).rowcount > 0)
        admin.execute("UPDATE patient SET merged_into_patient_id = 'c' WHERE patient_id = 'a'")
        admin.execute("UPDATE same_person SET person_id = 'c' WHERE patient_id = 'a'")
        admin.execute("UPDATE same_person SET patient_id = 'c', person_id = 'c' WHERE patient_id = 'b'")
    join(running)
    assert people.get(PATIENT, "a").merged_into_patient_id == ""
    assert run(people, "SELECT * FROM same_person") == []
    sql = "SELECT patient_id FROM change WHERE revision = (SELECT head_revision FROM store) ORDER BY position"
    assert run(people, sql) == [("c",), ("a",)]
