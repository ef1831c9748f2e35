"""A purge permanently erases people who were deleted long ago."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from caseload_server.domain import errors, requests
from caseload_server.domain.records import Change, ChangeSet
from caseload_server.domain.requests import ChangeQuery, Delete, Fields, Update
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.protocol import Transaction

from tests.store.conftest import Clock
from tests.store.store_calls import (
    CALL,
    TABLES,
    VALIDATE,
    AnyKind,
    assign,
    assigned,
    both_kinds,
    count,
    delete,
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


def purge(store: RelationshipStore, before_us: int) -> list[tuple[str, int, int]]:
    """Runs a purge. Returns what each commit erased."""
    return [
        (kind.name, *purged) for kind in (PATIENT, THERAPIST) for purged in store.purger.purge_records(kind, before_us)
    ]


def gone(store: RelationshipStore, kind: AnyKind, *ids: str) -> None:
    """Creates, deletes and purges the records."""
    for one in ids:
        make(store, kind, one)
        delete(store, kind, one)
    assert sum(people for _, people, _ in purge(store, 2**62)) == len(ids)


def log(store: RelationshipStore) -> list[ChangeSet]:
    return store.list_changes(ChangeQuery(), "", 1000).change_sets


@both_kinds
def test_a_purge_erases_only_records_deleted_before_the_given_time(
    store: RelationshipStore, clock: Clock, kind: AnyKind
) -> None:
    for name in "abcd":
        make(store, kind, name)
    delete(store, kind, "a")
    clock.advance(10)
    moment = clock.now_us
    delete(store, kind, "b")
    clock.advance(10)
    delete(store, kind, "c")
    assert store.purger.count_purgeable(kind, moment) == 1  # a record deleted exactly at the time is not counted
    assert purge(store, moment) == [(kind.name, 1, 0)]
    assert run(store, "SELECT kind, record_id FROM purged") == [(kind.name, "a")]
    assert [store.get(kind, one).deleted_us is None for one in "bcd"] == [False, False, True]
    assert purge(store, moment) == []


@both_kinds
def test_a_purge_keeps_only_the_id_of_a_record(store: RelationshipStore, kind: AnyKind) -> None:
    more = {"specialties": f'["{CANARY}"]'} if kind is THERAPIST else {"birth_date": "1990-01-01"}
    make_pair(store)
    make(store, kind, "a", display_name=CANARY, identifiers=f'[["urn:mrn","{CANARY}"]]', email=f"{CANARY}@b", **more)
    assign(store, *(("a", "p") if kind is THERAPIST else ("t", "a")), focus=CANARY)
    delete(store, kind, "a", force=True)
    assert [row for row in everything(store) if CANARY.lower() in repr(row).lower()]
    assert purge(store, 2**62) == [(kind.name, 1, 1)]
    assert not [row for row in everything(store) if CANARY.lower() in repr(row).lower()]
    for table in TABLES:
        rows = [row for row in run(store, f"SELECT * FROM {table}") if "a" in row]
        assert not rows or table in ("purged", "change", "request"), table


def everything(store: RelationshipStore) -> list[Any]:
    return [row for table in TABLES for row in run(store, f"SELECT * FROM {table}")]


@both_kinds
def test_a_purged_id_is_never_reused(store: RelationshipStore, kind: AnyKind) -> None:
    gone(store, kind, "a")
    head = store.head_revision()
    for call in (CALL, VALIDATE, request("b")):
        with pytest.raises(errors.IdTaken):
            store.create(kind, "a", {"display_name": "Ada"}, call)
    assert store.head_revision() == head
    assert make(store, other(kind), "a")[0] == "a"  # the other kind never used the id


@both_kinds
def test_the_database_rejects_a_purged_id(store: RelationshipStore, kind: AnyKind) -> None:
    """Protects against server versions without purges, and against rows added with SQL."""
    gone(store, kind, "a")
    record = make(store, kind, "b")
    columns = ", ".join(record._fields)
    copied = columns.replace(kind.id_column, "'a'", 1)
    sql = (
        f"INSERT INTO {kind.name} ({columns}) SELECT {copied} FROM {kind.name} WHERE {kind.id_column} = 'b' RETURNING 1"
    )
    assert run(store, sql) == []
    assert run(store, sql.replace("'a'", "'c'")) == [(1,)]
    assert run(store, f"SELECT {kind.id_column} FROM {kind.name} ORDER BY {kind.id_column}") == [("b",), ("c",)]


@both_kinds
def test_a_create_waits_for_a_running_purge_of_its_id(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "a")
    delete(store, kind, "a")
    is_erased = threading.Event()

    def slowly(transaction: Transaction) -> None:
        transaction.run(f"DELETE FROM {kind.name} WHERE {kind.id_column} = 'a'")
        transaction.run("INSERT INTO purged VALUES (:kind, 'a')", {"kind": kind.name})
        is_erased.set()
        time.sleep(0.3)

    purging = threading.Thread(target=store._database.write, args=(slowly,))
    purging.start()
    assert is_erased.wait(HUNG_SECONDS)
    with pytest.raises(errors.IdTaken):
        make(store, kind, "a")
    join(purging)
    assert run(store, f"SELECT 1 FROM {kind.name}") == []


@both_kinds
def test_the_identifiers_of_a_purged_record_are_free(store: RelationshipStore, kind: AnyKind) -> None:
    make(store, kind, "a", identifiers=MRN)
    delete(store, kind, "a")
    purge(store, 2**62)
    assert make(store, kind, "b", identifiers=MRN).identifiers == MRN


@both_kinds
def test_a_replay_about_a_purged_record_finds_nothing(store: RelationshipStore, kind: AnyKind) -> None:
    made: Fields = {"display_name": "Ada"}
    store.create(kind, "a", made, request("create"))
    store.update(kind, Update("a", {"email": "a@b"}), request("update"))
    store.delete(kind, Delete("a"), request("delete"))
    purge(store, 2**62)
    repeats: list[Callable[[], object]] = [
        lambda: store.create(kind, "a", made, request("create")),
        lambda: store.update(kind, Update("a", {"email": "a@b"}), request("update")),
        lambda: store.delete(kind, Delete("a"), request("delete")),
    ]
    for repeat in repeats:
        with pytest.raises(kind.not_found):
            repeat()


@both_kinds
def test_the_other_record_stays_without_the_purged_assignments(store: RelationshipStore, kind: AnyKind) -> None:
    make_pair(store)
    make(store, kind, "erased")
    stays = "p" if kind is THERAPIST else "t"
    pairs = [
        (one, stays) if kind is THERAPIST else (stays, one) for one in ("erased", "t" if kind is THERAPIST else "p")
    ]
    for pair in pairs:
        assign(store, *pair)
        unassign(store, *pair)
        assign(store, *pair)
    delete(store, kind, "erased", force=True)
    assert purge(store, 2**62) == [(kind.name, 1, 2)]
    page = assigned(store, other(kind), requests.CaseloadQuery(stays, states=(1, 2)))
    assert [(period.therapist_id, period.patient_id) for period, _ in page.records] == [pairs[1]] * 2
    assert count(store, other(kind), stays) == 1
    assert delete(store, other(kind), stays, force=True).ended_count == 1


@both_kinds
def test_the_log_says_what_was_erased_and_by_whom(store: RelationshipStore, clock: Clock, kind: AnyKind) -> None:
    make_pair(store)
    period = assign(store)
    name = "t" if kind is THERAPIST else "p"
    delete(store, kind, name, force=True)
    before = log(store)
    clock.advance(60)
    purge(store, clock.now_us)
    assert log(store)[:-1] == before
    change_set = log(store)[-1]
    assert (change_set.actor, change_set.method, change_set.request_id) == ("cli:purge", "", "")
    assert change_set.committed_us == clock.now_us
    therapist_id, patient_id = ("t", None) if kind is THERAPIST else (None, "p")
    assert change_set.changes == [
        Change(5, "", "t", "p", period.assignment_id),
        Change(5, "", therapist_id, patient_id, None),
    ]
    assert store.list_changes(ChangeQuery(actor="cli:purge"), "", 10).change_sets == [change_set]
    assert store.list_changes(ChangeQuery(**{kind.id_column: name}), "", 10).change_sets[-1] == change_set


@pytest.mark.slow
def test_a_purge_of_many_records_uses_several_short_commits(store: RelationshipStore) -> None:
    for number in range(230):
        make(store, PATIENT, f"p{number:03}")
        delete(store, PATIENT, f"p{number:03}")
    assert purge(store, 2**62) == [("patient", 100, 0), ("patient", 100, 0), ("patient", 30, 0)]
    assert [len(one.changes) for one in log(store)[-3:]] == [100, 100, 30]


def treated(store: RelationshipStore, kind: AnyKind, names: list[str], periods: int) -> None:
    """Deleted records, each with the given number of ended periods with one record that stays."""
    stays = make(store, other(kind), "stays")[0]
    for name in names:
        make(store, kind, name)
    period = assign(store, *((names[0], stays) if kind is THERAPIST else (stays, names[0])))
    unassign(store, period.therapist_id, period.patient_id)
    columns = ", ".join(period._fields)
    copied = columns.replace("assignment_id", "who.atom || 'more' || number.atom").replace(kind.id_column, "who.atom")
    run(
        store,
        f"INSERT INTO assignment ({columns}) SELECT {copied} FROM assignment, json_each(:names) AS who,"
        " json_each(:numbers) AS number WHERE number.atom <> '00000' OR who.atom <> :first",
        {"names": json.dumps(names), "numbers": json.dumps([f"{n:05}" for n in range(periods)]), "first": names[0]},
    )
    for name in names:
        delete(store, kind, name)


@pytest.mark.slow
@both_kinds
def test_no_record_is_partly_erased_between_two_commits(store: RelationshipStore, kind: AnyKind) -> None:
    """After each commit a record is undeleted and must still be complete."""
    names = [f"n{number:03}" for number in range(120)]
    treated(store, kind, names, periods=10)
    steps = []
    for step in store.purger.purge_records(kind, 2**62):
        steps.append(step)
        if left := run(store, f"SELECT MIN({kind.id_column}) FROM {kind.name} WHERE deleted_us IS NOT NULL")[0][0]:
            store.undelete(kind, str(left), CALL)
            query = requests.CaseloadQuery(str(left), states=(1, 2))
            assert len(assigned(store, kind, query).records) == 10
    assert steps == [(90, 900), (29, 290)]
    assert run(store, "SELECT COUNT(*) FROM assignment") == [(10,)]


@pytest.mark.slow
@both_kinds
def test_a_record_larger_than_a_batch_is_erased_in_one_commit(store: RelationshipStore, kind: AnyKind) -> None:
    treated(store, kind, ["n1", "n2"], periods=3500)
    after, sets = store.list_changes(ChangeQuery(), "", 1).head, []
    assert purge(store, 2**62) == [(kind.name, 1, 3500), (kind.name, 1, 3500)]
    while (page := store.list_changes(ChangeQuery(), after, 1)).change_sets:
        sets += page.change_sets
        after = page.through
    assert [len(one.changes) for one in sets] == [3001, 500] * 2  # no change set is larger than that of a call
    assert len({change.assignment_id for one in sets for change in one.changes}) == 7001
    assert run(store, "SELECT COUNT(*) FROM assignment") == [(0,)]


@pytest.mark.slow
def test_an_interrupted_purge_leaves_the_remaining_records_whole(store: RelationshipStore) -> None:
    for number in range(150):
        make(store, PATIENT, f"p{number:03}")
        delete(store, PATIENT, f"p{number:03}")
    assert next(store.purger.purge_records(PATIENT, 2**62)) == (100, 0)
    assert run(store, "SELECT COUNT(*) FROM patient") == [(50,)]
    assert store.purger.count_purgeable(PATIENT, 2**62) == 50
    assert store.undelete(PATIENT, "p149", CALL).record.deleted_us is None
    assert purge(store, 2**62) == [("patient", 49, 0)]
    assert store.get(PATIENT, "p149").deleted_us is None


@both_kinds
def test_purges_racing_undeletes_and_creates_leave_each_id_live_or_purged(
    store: RelationshipStore, kind: AnyKind
) -> None:
    """Each of 24 ids ends either live or purged, never both, and no purged id is created again."""
    names = [f"r{number}" for number in range(24)]
    for name in names:
        make(store, kind, name)
        delete(store, kind, name)

    def one(number: int) -> object:
        if number < 4:
            return purge(store, 2**62)
        name = names[number - 4]
        if number % 2:
            return store.undelete(kind, name, CALL)
        return make(store, kind, name)

    _, refusals = race(one, len(names) + 4)
    assert {type(refusal) for refusal in refusals} <= {errors.IdTaken, kind.not_found}
    purged = {name for (name,) in run(store, "SELECT record_id FROM purged")}
    left = {name for (name,) in run(store, f"SELECT {kind.id_column} FROM {kind.name}")}
    assert purged | left == set(names)
    assert not purged & left
    made = [change.kind for one in log(store) for change in one.changes if change.kind == 1]
    assert len(made) == len(names)


def test_a_correction_racing_a_purge_succeeds_before_it_or_finds_nothing(store: RelationshipStore) -> None:
    for number in range(12):
        make(store, PATIENT, f"p{number}")
    make(store, THERAPIST, "t")
    periods = [assign(store, "t", f"p{number}") for number in range(12)]
    delete(store, THERAPIST, "t", force=True)

    def one(number: int) -> object:
        if number == 12:
            return purge(store, 2**62)
        return store.correct(periods[number].assignment_id, "", {"focus": "mended"}, CALL)

    _, refusals = race(one, 13)
    assert {type(refusal) for refusal in refusals} <= {errors.AssignmentNotFound}
    assert log(store)[-1].actor == "cli:purge"
    assert run(store, "SELECT COUNT(*) FROM assignment") == [(0,)]
