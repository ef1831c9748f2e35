"""Closing a store while callers use it."""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from caseload_server.domain import errors, requests
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.store.backends.protocol import Query
from caseload_server.store.backends.sqlite.database import SqliteDatabase

from tests.store.backends.sqlite.writers import commit_under_way
from tests.store.conftest import Clock
from tests.store.store_calls import ALL, ids, make, run
from tests.support.waiting import HUNG_SECONDS, eventually, join


@pytest.fixture
def store(database: SqliteDatabase, clock: Clock) -> RelationshipStore:
    return RelationshipStore(database, clock)


def test_a_closed_store_rejects_writes(store: RelationshipStore) -> None:
    store.close()
    with pytest.raises(errors.ShuttingDown):
        make(store, PATIENT, "p")


def test_a_closed_store_rejects_reads_in_every_thread(path: Path, store: RelationshipStore) -> None:
    make(store, PATIENT, "p")
    store.get(PATIENT, "p")
    store.close()
    failures: list[type[Exception]] = []

    def read() -> None:
        for look in (lambda: store.get(PATIENT, "p"), lambda: ids(store, PATIENT)):
            try:
                look()
            except Exception as error:  # noqa: BLE001 - it is what the test looks at
                failures.append(type(error))

    read()
    late_reader = threading.Thread(target=read)
    late_reader.start()
    join(late_reader)
    assert len(failures) == 4
    assert set(failures) <= {errors.ShuttingDown, errors.StoreUnavailable}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_read_during_a_close_completes_or_raises_a_domain_error(
    database: SqliteDatabase, store: RelationshipStore
) -> None:
    """A call longer than the grace period may still be reading."""
    for number in range(100):
        make(store, PATIENT, f"p{number}")
    closing = threading.Thread(target=store.close)
    seen: list[Any] = []
    with suppress(errors.ShuttingDown, errors.StoreUnavailable), database.snapshot() as transaction:
        rows = transaction.rows(Query("SELECT patient_id FROM patient", {}))
        seen.append(next(rows))
        closing.start()
        eventually(lambda: database._group_commit._closed)
        time.sleep(0.05)
        seen.extend(rows)
    join(closing)
    assert len(seen) in {1, 100}


def test_a_close_during_writes_loses_no_acknowledged_write(path: Path, store: RelationshipStore) -> None:
    acknowledged: list[str] = []
    ends: list[type[Exception]] = []

    def write(worker: int) -> None:
        try:
            for turn in range(100_000):
                made = make(store, PATIENT, f"p{worker}-{turn}")
                acknowledged.append(made.patient_id)
        except errors.DomainError as error:
            ends.append(type(error))

    workers = [threading.Thread(target=write, args=(worker,)) for worker in range(8)]
    for worker in workers:
        worker.start()
    eventually(lambda: len(acknowledged) > 50)
    store.close()
    join(*workers)
    assert ends == [errors.ShuttingDown] * 8
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    reopened = RelationshipStore(SqliteDatabase(path), lambda: 1)
    assert {row[0] for row in run(reopened, "SELECT patient_id FROM patient")} == set(acknowledged)
    reopened.close()


def test_a_close_waits_for_all_queued_writes(path: Path, database: SqliteDatabase, store: RelationshipStore) -> None:
    closing = threading.Thread(target=store.close)
    writers = [threading.Thread(target=make, args=(store, PATIENT, f"p{number}")) for number in range(5)]
    with commit_under_way(database):
        for writer in writers:
            writer.start()
        eventually(lambda: len(database._group_commit._queue) == 5)
        closing.start()
        eventually(lambda: database._group_commit._closed)
    join(closing, *writers)
    reopened = RelationshipStore(SqliteDatabase(path), lambda: 1)
    assert ids(reopened, PATIENT) == [f"p{number}" for number in range(5)]
    reopened.close()


def test_a_close_during_reads_succeeds(store: RelationshipStore) -> None:
    for number in range(50):
        make(store, PATIENT, f"p{number}")
    reading, stop = threading.Barrier(5), threading.Event()
    failures: list[type[Exception]] = []

    def read() -> None:
        reading.wait(HUNG_SECONDS)
        for _ in range(100_000):
            if stop.is_set():
                return
            try:
                store.list_records(PATIENT, requests.RecordQuery(name_prefix="ada"), ALL)
            except Exception as error:  # noqa: BLE001 - it is what the test looks at
                failures.append(type(error))
                return

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    reading.wait(HUNG_SECONDS)
    time.sleep(0.05)
    try:
        store.close()
        time.sleep(0.05)
    finally:
        stop.set()
        join(*readers)
    assert set(failures) <= {errors.ShuttingDown, errors.StoreUnavailable}
