"""The SQLite back end: group commit, locks, several processes on one file."""

import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
from caseload_server.domain import errors, requests
from caseload_server.domain.call_deadline import read_deadline
from caseload_server.domain.records import Therapist
from caseload_server.domain.results import RecordResult
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.protocol import Query
from caseload_server.store.backends.sqlite import connection as sqlite
from caseload_server.store.backends.sqlite.database import SqliteDatabase

from tests.store.backends.sqlite.disk_faults import faulty_disk
from tests.store.backends.sqlite.writers import batch, locked
from tests.store.conftest import Clock
from tests.store.store_calls import ALL, CALL, assign, count, dump, head, ids, make, race, request, run
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, join


@pytest.fixture
def store(database: SqliteDatabase, clock: Clock) -> RelationshipStore:
    return RelationshipStore(database, clock)


def count_commits(database: SqliteDatabase) -> list[None]:
    commits: list[None] = []

    def committing() -> bool:
        commits.append(None)
        return False

    database._writer.set_commit_hook(committing)
    return commits


# Group commit.


def test_waiting_writers_share_the_next_commit(database: SqliteDatabase, store: RelationshipStore) -> None:
    commits = count_commits(database)
    made = batch(database, [partial(make, store, THERAPIST, f"t{n:02}") for n in range(40)])
    assert len(commits) == 2
    assert store.list_records(THERAPIST, requests.RecordQuery(), ALL).records == made
    assert head(store) == 40


def test_a_queue_longer_than_a_batch_needs_several_commits(
    database: SqliteDatabase, store: RelationshipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database._group_commit, "max_batch", 4)
    commits = count_commits(database)
    made = batch(database, [partial(make, store, THERAPIST, f"t{n}") for n in range(10)])
    assert len(commits) == 4
    assert store.list_records(THERAPIST, requests.RecordQuery(), ALL).records == made


def test_a_single_writer_commits_without_delay(database: SqliteDatabase, store: RelationshipStore) -> None:
    commits = count_commits(database)
    for number in range(5):
        make(store, THERAPIST, f"t{number}")
    assert len(commits) == 5


def test_a_failed_write_does_not_affect_others_in_its_batch(database: SqliteDatabase, store: RelationshipStore) -> None:
    make(store, THERAPIST, "taken")

    def defect(transaction: Any) -> None:
        transaction.run("INSERT INTO therapist_specialty VALUES ('taken', 'half')")
        raise ZeroDivisionError

    def broken_sql(transaction: Any) -> None:
        transaction.run("INSERT INTO therapist_specialty VALUES ('taken', 'half')")
        transaction.run("INSERT INTO nowhere VALUES (1)")

    results = batch(
        database,
        [
            lambda: make(store, THERAPIST, "first"),
            lambda: make(store, THERAPIST, "taken"),
            lambda: database.write(defect),
            lambda: make(store, THERAPIST, "second"),
            lambda: database.write(broken_sql),
            lambda: store.create(THERAPIST, "third", {"display_name": "Ada"}, CALL._replace(validate_only=True)),
            lambda: make(store, THERAPIST, "fourth"),
        ],
    )
    assert [type(result) for result in results] == [
        Therapist,
        errors.IdTaken,
        ZeroDivisionError,
        Therapist,
        apsw.SQLError,
        RecordResult,
        Therapist,
    ]
    assert ids(store, THERAPIST) == ["first", "fourth", "second", "taken"]
    assert run(store, "SELECT * FROM therapist_specialty") == []


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "RELEASE job", "COMMIT"])
def test_a_failed_commit_acknowledges_no_write_of_the_batch(
    database: SqliteDatabase, store: RelationshipStore, statement: str
) -> None:
    passed: list[str] = []

    def trace(_cursor: object, sql: str, _bindings: object) -> bool:
        if sql == statement:
            passed.append(sql)
            if len(passed) == 2:  # the first commit is the one that the batch waits for
                raise MemoryError
        return True

    make(store, THERAPIST, "before")
    database._writer.exec_trace = trace
    outcomes = batch(database, [partial(make, store, THERAPIST, name) for name in ("a", "b", "c")])
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    acknowledged = {outcome.therapist_id for outcome in outcomes if not isinstance(outcome, BaseException)}
    assert failed
    assert set(ids(store, THERAPIST)) == {"before"} | acknowledged
    make(store, THERAPIST, "after")
    assert "after" in ids(store, THERAPIST)


def test_every_acknowledged_write_has_been_synced(path: Path, clock: Clock) -> None:
    with faulty_disk() as disk:
        database = SqliteDatabase(path)
        store = RelationshipStore(database, clock)
        done: list[str] = []
        disk.before = lambda operation, file: done.append(operation) if file == "log" else None
        for number in range(5):
            done.clear()
            make(store, THERAPIST, f"t{number}")
            assert "write" in done
            assert done[-1] == "sync"
        done.clear()
        batch(database, [partial(make, store, THERAPIST, f"u{n}") for n in range(20)])
        assert done[-1] == "sync"
        assert done.count("sync") <= 2
        database.close()


# Locks.


def test_a_lock_held_too_long_is_busy_while_reads_continue(
    path: Path, store: RelationshipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, PATIENT, "p")
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_SECONDS", 0.1)
    before = dump(store)
    with locked(path):
        with pytest.raises(errors.StoreBusy):
            make(store, PATIENT, "q")
        assert ids(store, PATIENT) == ["p"]
    assert dump(store) == before
    make(store, PATIENT, "q")


def test_a_write_waits_for_a_lock_held_briefly(
    path: Path, store: RelationshipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_SECONDS", NEVER_SECONDS)
    waiting = threading.Thread(target=make, args=(store, PATIENT, "p"))
    with locked(path):
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        assert ids(store, PATIENT) == []
    join(waiting)
    assert ids(store, PATIENT) == ["p"]


def test_a_read_sees_one_snapshot_during_writes(database: SqliteDatabase, store: RelationshipStore) -> None:
    make(store, PATIENT, "p")
    with database.snapshot() as transaction:
        rows = "SELECT patient_id FROM patient"
        assert transaction.run(rows) == [("p",)]
        writer = threading.Thread(target=make, args=(store, PATIENT, "q"))
        writer.start()
        join(writer)
        assert transaction.run(rows) == [("p",)]
    assert ids(store, PATIENT) == ["p", "q"]


def test_an_abandoned_read_releases_its_snapshot(database: SqliteDatabase, store: RelationshipStore) -> None:
    for number in range(3):
        make(store, PATIENT, f"p{number}")
    with pytest.raises(ZeroDivisionError), database.snapshot() as transaction:  # noqa: PT012 - left half-way
        next(transaction.rows(Query("SELECT * FROM patient", {})))
        raise ZeroDivisionError
    make(store, PATIENT, "q")
    assert ids(store, PATIENT)[-1] == "q"
    busy, _, _ = database._writer.pragma("wal_checkpoint", "TRUNCATE")
    assert not busy


# Several writers on one file.


def test_two_connections_to_one_file_keep_every_rule(path: Path, clock: Clock) -> None:
    stores = [RelationshipStore(SqliteDatabase(path), clock) for _ in range(2)]
    assert stores[0].keys == stores[1].keys
    make(stores[0], THERAPIST, "t", max_active_patients=10)
    for number in range(32):
        make(stores[1], PATIENT, f"p{number}")
    start = head(stores[0])
    done, refusals = race(lambda number: assign(stores[number % 2], "t", f"p{number}"))
    assert len(done) == 10
    assert {type(refusal) for refusal in refusals} == {errors.TherapistAtCapacity}
    assert [count(store, THERAPIST, "t") for store in stores] == [10, 10]
    call = request("3b241101-e2bb-4255-8caf-4136c566a962")
    made, refusals = race(lambda number: stores[number % 2].create(PATIENT, "", {"display_name": "Ada"}, call))
    assert (len(set(made)), refusals) == (1, [])
    assert head(stores[1]) == start + 11
    assert run(stores[0], "SELECT count(*) FROM change_set") == [(start + 11,)]
    for store in stores:
        store.close()


@pytest.mark.slow
def test_several_processes_on_one_file_keep_every_rule(path: Path, store: RelationshipStore) -> None:
    make(store, THERAPIST, "t", max_active_patients=25)
    for number in range(60):
        make(store, PATIENT, f"p{number}")
    script = """
import sys
from pathlib import Path
from caseload_server.domain import errors
from caseload_server.domain.requests import Assign, CallContext
from caseload_server.store import RelationshipStore
from caseload_server.store.backends.sqlite.database import SqliteDatabase
store = RelationshipStore(SqliteDatabase(Path(sys.argv[1])), lambda: 1)
print("ready", flush=True)
sys.stdin.readline()
done = 0
for number in range(int(sys.argv[2]), 60, 3):
    try:
        done += store.assign(Assign("t", f"p{number}"), CallContext("a", "m")).created
    except errors.TherapistAtCapacity:
        pass
store.close()
print(done)
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    results = [worker.communicate(timeout=HUNG_SECONDS) for worker in workers]
    assert [log for _, log in results] == [""] * 3
    assert sum(int(out) for out, _ in results) == 25 == count(store, THERAPIST, "t")
    assert head(store) == 61 + 25


# Deadlines.

ENDLESS = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers) SELECT COUNT(*) FROM numbers"


def read_with_deadline(read: Callable[[], object]) -> None:
    """Runs a read that must end at its deadline, which is now."""
    context = contextvars.copy_context()
    context.run(read_deadline.set, time.monotonic())
    with pytest.raises(errors.StoreBusy) as caught:
        context.run(read)
    assert caught.value.cause == errors.StoreBusy.STATEMENT_TIMEOUT


def test_a_read_ends_at_the_deadline_of_its_call(database: SqliteDatabase) -> None:
    read_with_deadline(lambda: database.read(ENDLESS))


def test_a_snapshot_ends_at_the_deadline_of_its_call_and_frees_its_connection(database: SqliteDatabase) -> None:
    def scan() -> None:
        with database.snapshot() as transaction:
            list(transaction.rows(Query(ENDLESS, {})))

    read_with_deadline(scan)
    assert database.read("SELECT 1") == [(1,)]
