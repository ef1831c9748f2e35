"""A purge of one person erases no other person."""

import threading
import time

import pytest
from caseload_server.domain import errors
from caseload_server.domain.records import ChangeSet
from caseload_server.domain.requests import ChangeQuery, Merge
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.protocol import Transaction
from caseload_server.store.purges import NotPurgeable

from tests.store.conftest import Clock
from tests.store.store_calls import (
    CALL,
    TABLES,
    AnyKind,
    assign,
    both_kinds,
    count,
    delete,
    dump,
    ids,
    make,
    make_pair,
    other,
    race,
    request,
    run,
    unassign,
)
from tests.support.waiting import HUNG_SECONDS, join

MRN = '[["urn:mrn","1"]]'
CANARY = "Zebrafinch"


def pair(kind: AnyKind, one: str) -> tuple[str, str]:
    """The record of this kind with t or p."""
    return (one, "p") if kind is THERAPIST else ("t", one)


@both_kinds
def test_one_deleted_person_is_erased_with_all_assignments(
    store: RelationshipStore, clock: Clock, kind: AnyKind
) -> None:
    make_pair(store)
    for name in ("a", "b"):
        fields = {"aliases": f'["{CANARY} {name}"]', "identifiers": f'[["urn:mrn","{CANARY}{name}"]]'}
        make(store, kind, name, display_name=f"{CANARY} {name}", **fields)
        assign(store, *pair(kind, name))
        unassign(store, *pair(kind, name))
        assign(store, *pair(kind, name), focus="grief")
        delete(store, kind, name, force=True)
    kept = store.get(kind, "b")
    clock.advance(60)
    head = store.head_revision()
    assert store.purger.purge_record(kind, "a") == (1, 2)
    with pytest.raises(kind.not_found):
        store.get(kind, "a")
    assert store.get(kind, "b") == kept
    assert count(store, other(kind), "p" if kind is THERAPIST else "t") == 0
    rows = repr([row for table in TABLES for row in run(store, f"SELECT * FROM {table}")]).lower()
    assert f"{CANARY} a".lower() not in rows
    assert f"{CANARY}a".lower() not in rows
    assert f"{CANARY} b".lower() in rows
    last = store.list_changes(ChangeQuery(), store.keys.revision(head), 9).change_sets
    assert [(one.actor, one.committed_us, [change.kind for change in one.changes]) for one in last] == [
        ("cli:purge", clock.now_us, [5, 5, 5])
    ]
    assert last[0].changes[-1][2:4] == (("a", None) if kind is THERAPIST else (None, "a"))


@both_kinds
def test_a_person_who_is_not_deleted_is_kept(store: RelationshipStore, kind: AnyKind) -> None:
    make_pair(store)
    make(store, kind, "a", identifiers=MRN)
    assign(store, *pair(kind, "a"))
    before = dump(store)
    with pytest.raises(NotPurgeable, match="not deleted: delete it first"):
        store.purger.purge_record(kind, "a")
    assert dump(store) == before
    delete(store, kind, "a", force=True)
    store.undelete(kind, "a", CALL)
    with pytest.raises(NotPurgeable, match="not deleted"):
        store.purger.purge_record(kind, "a")


@both_kinds
def test_an_unknown_person_is_not_found_and_an_erased_one_is_erased_once(
    store: RelationshipStore, kind: AnyKind
) -> None:
    make(store, kind, "a")
    make(store, other(kind), "b")
    delete(store, kind, "a")
    for name in ("missing", "b"):
        with pytest.raises(kind.not_found):
            store.purger.purge_record(kind, name)
    assert store.purger.purge_record(kind, "a") == (1, 0)
    before = dump(store)
    assert store.purger.purge_record(kind, "a") == (0, 0)
    assert dump(store) == before
    with pytest.raises(errors.IdTaken):
        make(store, kind, "a")


@both_kinds
def test_a_replay_about_an_erased_person_finds_nothing(store: RelationshipStore, kind: AnyKind) -> None:
    store.create(kind, "a", {"display_name": "Ada"}, request("create"))
    delete(store, kind, "a")
    store.purger.purge_record(kind, "a")
    with pytest.raises(kind.not_found):
        store.create(kind, "a", {"display_name": "Ada"}, request("create"))


def test_patients_who_were_merged_into_an_erased_one_are_erased_too(store: RelationshipStore) -> None:
    make(store, THERAPIST, "t")
    for name in "abcd":
        make(store, PATIENT, name)
        assign(store, "t", name)
    store.merge(Merge("c", "b"), CALL)
    store.merge(Merge("b", "a"), CALL)
    delete(store, PATIENT, "a", force=True)
    assert store.purger.purge_record(PATIENT, "a") == (3, 3)
    assert ids(store, PATIENT, show_deleted=True) == ["d"]
    assert [row[1] for row in sorted(run(store, "SELECT * FROM purged"))] == ["a", "b", "c"]
    assert count(store, THERAPIST, "t") == 1


def test_a_merged_patient_is_erased_only_with_the_other_record(store: RelationshipStore) -> None:
    for name in "ab":
        make(store, PATIENT, name)
    store.merge(Merge("b", "a"), CALL)
    before = dump(store)
    with pytest.raises(NotPurgeable, match="was merged into patient a: purge that one, or unmerge it first"):
        store.purger.purge_record(PATIENT, "b")
    with pytest.raises(NotPurgeable, match="not deleted"):
        store.purger.purge_record(PATIENT, "a")
    assert dump(store) == before


@both_kinds
def test_a_person_who_is_undeleted_while_a_purge_waits_is_kept(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "a")
    delete(store, kind, "a")
    is_undeleted = threading.Event()

    def slowly(transaction: Transaction) -> None:
        transaction.run(f"UPDATE {kind.name} SET deleted_us = NULL RETURNING 1")
        is_undeleted.set()
        time.sleep(0.3)

    undeleting = threading.Thread(target=store._database.write, args=(slowly,))
    undeleting.start()
    assert is_undeleted.wait(HUNG_SECONDS)
    with pytest.raises(NotPurgeable, match="not deleted"):
        store.purger.purge_record(kind, "a")
    join(undeleting)
    assert ids(store, kind) == ["a"]


@both_kinds
def test_purges_of_one_person_race_undeletes_and_purges_of_all(store: RelationshipStore, kind: AnyKind) -> None:
    names = [f"a{number}" for number in range(8)]
    make_pair(store)
    for name in names:
        make(store, kind, name)
        assign(store, *pair(kind, name))
        delete(store, kind, name, force=True)

    def one(number: int) -> object:
        name = names[number % 8]
        if number < 16:
            return _purged_or_live(store, kind, name)
        if number < 24:
            return store.undelete(kind, name, CALL)
        return list(store.purger.purge_records(kind, 2**62)) and None

    _, refusals = race(one, 26)
    assert {type(refusal) for refusal in refusals} <= {kind.not_found}
    purged = {name for (name,) in run(store, "SELECT record_id FROM purged")}
    left = set(ids(store, kind, show_deleted=True)) - {"t", "p"}
    assert purged | left == set(names)
    assert not purged & left
    assert len(run(store, "SELECT * FROM assignment")) == len(left)
    erased = [change for one in _log(store) for change in one.changes if change.kind == 5]
    assert len(erased) == 2 * len(purged)


def _purged_or_live(store: RelationshipStore, kind: AnyKind, name: str) -> object:
    try:
        return store.purger.purge_record(kind, name)
    except NotPurgeable:
        return None


def _log(store: RelationshipStore) -> list[ChangeSet]:
    return store.list_changes(ChangeQuery(), "", 1000).change_sets
