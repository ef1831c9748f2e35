"""BatchCreate: many records in one transaction, in order, all or nothing."""

import json
from typing import Any

import pytest
from caseload_server.domain import enums, errors
from caseload_server.domain.limits import MAX_RECORD_BYTES
from caseload_server.domain.requests import CallContext, NewRecord
from caseload_server.store import PATIENT, RelationshipStore

from tests.store.conftest import Clock
from tests.store.store_calls import (
    CALL,
    VALIDATE,
    AnyKind,
    both_kinds,
    broken,
    delete,
    dump,
    head,
    ids,
    make,
    race,
    request,
    run,
)

ID = "3b241101-e2bb-4255-8caf-4136c566a962"
DAY = 24 * 3600


def entry(record_id: str = "", *values: str, **fields: Any) -> NewRecord:
    """An entry with these values as identifiers."""
    identifiers = json.dumps([["urn:mrn", value] for value in values], separators=(",", ":"))
    return record_id, {"display_name": "Ann Lee", "identifiers": identifiers, **fields}


MANY = [entry(f"n{n * 37 % 100}", f"{n * 61 % 100}") for n in range(100)]


def refused(
    store: RelationshipStore, kind: AnyKind, batch: list[NewRecord], call: CallContext = CALL
) -> errors.DomainError:
    """The error of a batch that must write nothing."""
    before = dump(store)
    with pytest.raises(errors.DomainError) as refusal:
        store.batch_create(kind, batch, call)
    assert dump(store) == before
    return refusal.value


@both_kinds
def test_100_records_are_created_in_one_change_set_in_the_order_of_the_entries(
    store: RelationshipStore, kind: AnyKind
) -> None:
    before = head(store)
    result = store.batch_create(kind, MANY, CALL)
    assert [record[0] for record in result.records] == [record_id for record_id, _ in MANY]
    assert result.records == store.batch_get(kind, [record_id for record_id, _ in MANY])
    assert head(store) == before + 1
    sql = f"SELECT kind, {kind.id_column} FROM change WHERE revision = :head ORDER BY position"
    lines = run(store, sql, {"head": head(store)})
    assert lines == [(enums.CHANGE_CREATED, record_id) for record_id, _ in MANY]
    assert broken(store) == []


@both_kinds
def test_created_records_are_found_as_those_of_single_calls(store: RelationshipStore, kind: AnyKind) -> None:
    batch = [entry("", "1", display_name="Zoë Roe", aliases='["Z Lee"]'), entry("b", display_name="Bob Ray")]
    first = store.batch_create(kind, batch, CALL).records[0]
    assert first.display_name == "Zoë Roe"
    assert ids(store, kind, name_prefix="zoe lee") == [first[0]]
    assert ids(store, kind, identifier=("urn:mrn", "1")) == [first[0]]
    assert ids(store, kind, name_prefix="bob") == ["b"]


@both_kinds
@pytest.mark.parametrize("index", [0, 7, 99])
def test_a_taken_id_rejects_the_batch_and_is_named_by_its_index(
    store: RelationshipStore, kind: AnyKind, index: int
) -> None:
    make(store, kind, MANY[index][0])
    found = refused(store, kind, MANY)
    assert (type(found), found.metadata) == (errors.IdTaken, {"index": str(index)})


@both_kinds
@pytest.mark.parametrize("index", [0, 7, 99])
def test_a_taken_identifier_rejects_the_batch_and_names_the_record_that_has_it(
    store: RelationshipStore, kind: AnyKind, index: int
) -> None:
    make(store, kind, "holder", identifiers=MANY[index][1]["identifiers"])
    found = refused(store, kind, MANY)
    assert (type(found), found.metadata) == (errors.IdentifierTaken, {"index": str(index)})
    assert [resource.name for resource in found.resources] == ["holder"]


@both_kinds
def test_two_entries_with_the_same_id_or_identifier_name_each_other(store: RelationshipStore, kind: AnyKind) -> None:
    found = refused(store, kind, [entry("a"), entry("c"), entry("b"), entry("c")])
    assert (type(found), found.metadata) == (errors.IdTaken, {"index": "3", "other_index": "1"})
    found = refused(store, kind, [entry("z", "2"), entry("y", "1", "2"), entry("x", "1")], VALIDATE)
    assert (type(found), found.metadata, found.resources) == (
        errors.IdentifierTaken,
        {"index": "1", "other_index": "0"},
        (),
    )


@both_kinds
def test_two_entries_whose_identifiers_differ_in_invisible_characters_name_each_other(
    store: RelationshipStore, kind: AnyKind
) -> None:
    found = refused(store, kind, [entry("a", "GC-1\u200b"), entry("b", "GC-1")])
    assert (type(found), found.metadata) == (errors.IdentifierTaken, {"index": "1", "other_index": "0"})


@both_kinds
def test_the_first_entry_that_fails_is_named(store: RelationshipStore, kind: AnyKind) -> None:
    """Whatever the order in which the store inserts, and whatever the later entries would violate."""
    make(store, kind, "a", identifiers='[["urn:mrn","1"]]')
    large = entry("l", annotations=json.dumps({"k": "v" * MAX_RECORD_BYTES}))
    failing: list[tuple[NewRecord, str]] = [
        (large, "INVALID_FIELD"),
        (entry("a"), "ID_TAKEN"),
        (entry("z", "1"), "IDENTIFIER_TAKEN"),
        (entry("ok", "7"), "IDENTIFIER_TAKEN"),
        (entry("ok-2"), "ID_TAKEN"),
    ]
    for first, reason in failing:
        batch = [entry("ok-1", "7"), entry("ok-2"), first, *(other for other, _ in failing)]
        found = refused(store, kind, batch)
        where = found.violations[0].field if reason == "INVALID_FIELD" else found.metadata["index"]
        assert (found.reason, where) == (reason, f"requests[2].{kind.name}" if found.violations else "2")


@both_kinds
def test_the_id_of_a_deleted_record_stays_taken_and_its_identifiers_are_free(
    store: RelationshipStore, kind: AnyKind
) -> None:
    make(store, kind, "a", identifiers='[["urn:mrn","1"]]')
    delete(store, kind, "a")
    assert isinstance(refused(store, kind, [entry("a")]), errors.IdTaken)
    assert store.batch_create(kind, [entry("b", "1")], CALL).records[0][0] == "b"


@both_kinds
def test_a_replay_returns_the_records_as_they_are_now(store: RelationshipStore, kind: AnyKind, clock: Clock) -> None:
    batch = [entry(), entry("b", "1"), entry()]
    first = store.batch_create(kind, batch, request(ID))
    deleted = delete(store, kind, "b").record
    before = dump(store)
    clock.advance(DAY - 1)
    again = store.batch_create(kind, batch, request(ID))
    assert again == first._replace(records=[first.records[0], deleted, first.records[2]])
    assert store.batch_create(kind, batch, request(ID)._replace(validate_only=True)) == again._replace(revision="")
    assert dump(store) == before
    with pytest.raises(errors.RequestIdReused):
        store.batch_create(kind, batch, request(ID, b"another"))


@both_kinds
def test_validating_writes_nothing_and_leaves_generated_values_empty(store: RelationshipStore, kind: AnyKind) -> None:
    before = dump(store)
    result = store.batch_create(kind, [entry(), entry("b")], VALIDATE)
    assert dump(store) == before
    assert [(record[0], record.etag) for record in result.records] == [("", ""), ("b", "")]
    assert result.revision == ""


@pytest.mark.slow
def test_racing_batches_in_opposite_orders_create_each_record_once(
    store: RelationshipStore, instances: list[RelationshipStore]
) -> None:
    """Batches and single creates take the same ids and identifiers. None of them waits in a circle."""

    def one(number: int) -> list[Any]:
        batch = [entry(f"p{n}" if number % 3 else "", f"{n * 5 % 8}") for n in range(8)][:: (-1) ** number]
        chosen = instances[number % 3]
        if number % 4 == 0:
            return [chosen.create(PATIENT, *batch[number % 8], CALL).record]
        return chosen.batch_create(PATIENT, batch, CALL).records

    done, refusals = race(one, 16)
    assert {type(refusal) for refusal in refusals} <= {errors.IdTaken, errors.IdentifierTaken}
    assert any(done)
    assert broken(store) == []
