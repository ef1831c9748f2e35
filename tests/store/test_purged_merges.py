"""A purge erases a person as a whole: a merged patient only together with the record into which it was merged."""

import pytest
from caseload_server.domain import errors
from caseload_server.domain.requests import Merge
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_calls import CALL, assign, broken, delete, dump, make, race, run


@pytest.fixture
def merged(store: RelationshipStore, clock: Clock) -> RelationshipStore:
    """Patient a is merged into b, and b into c. Therapist t treats c, and treated a."""
    make(store, THERAPIST, "t")
    for one in "abcd":
        make(store, PATIENT, one, display_name=f"Zebrafinch-{one}")
    assign(store, "t", "a")
    clock.advance(10)
    store.merge(Merge("a", "b"), CALL)
    store.merge(Merge("b", "c"), CALL)
    clock.advance(10)
    return store


def purge(store: RelationshipStore, before_us: int) -> list[tuple[int, int]]:
    return [(batch.records, batch.assignments) for batch in store.purger.purge_records(PATIENT, before_us)]


def patients(store: RelationshipStore) -> list[str]:
    return [one for (one,) in run(store, "SELECT patient_id FROM patient ORDER BY patient_id")]


def test_a_merged_patient_is_not_purged_while_its_person_lives(merged: RelationshipStore, clock: Clock) -> None:
    before = dump(merged)
    assert (merged.purger.count_purgeable(PATIENT, 2**62), purge(merged, 2**62)) == (0, [])
    assert dump(merged) == before
    deleted_us = clock.now_us
    delete(merged, PATIENT, "c", force=True)
    assert (merged.purger.count_purgeable(PATIENT, deleted_us), purge(merged, deleted_us)) == (0, [])


def test_a_purge_erases_all_that_was_merged_into_a_patient(merged: RelationshipStore) -> None:
    delete(merged, PATIENT, "c", force=True)
    assert merged.purger.count_purgeable(PATIENT, 2**62) == 3
    assert purge(merged, 2**62) == [(3, 3)]
    assert patients(merged) == ["d"]
    assert run(merged, "SELECT record_id FROM purged ORDER BY record_id") == [("a",), ("b",), ("c",)]
    assert not [table for table, rows in dump(merged).items() if "Zebrafinch-a" in repr(rows) and table != "patient"]
    assert run(merged, "SELECT * FROM same_person") == run(merged, "SELECT * FROM assignment") == []
    for one in "abc":
        with pytest.raises(errors.PatientNotFound):
            merged.unmerge(one, CALL)


def test_a_batch_counts_the_assignments_of_merged_patients(
    merged: RelationshipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caseload_server.store.purges._MAX_ASSIGNMENTS_PER_BATCH", 2)
    delete(merged, PATIENT, "d")
    delete(merged, PATIENT, "c", force=True)
    assert purge(merged, 2**62) == [(3, 3), (1, 0)]


def test_an_unmerge_beside_a_purge_leaves_a_whole_record_or_none(merged: RelationshipStore) -> None:
    merged.unmerge("b", CALL)
    delete(merged, PATIENT, "b")

    def one(number: int) -> object:
        return purge(merged, 2**62) if number % 2 else merged.unmerge("a", CALL)

    race(one, 8)
    assert patients(merged) in (["a", "c", "d"], ["c", "d"])
    assert broken(merged) == []
