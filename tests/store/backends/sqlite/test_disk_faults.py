"""Full and failing disks, and what remains in the file."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import closing
from functools import partial
from pathlib import Path

import apsw
import pytest
from caseload_server.domain import errors, requests
from caseload_server.domain.records import Patient
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.store.backends.sqlite import database as sqlite
from caseload_server.store.backends.sqlite.database import SqliteDatabase

from tests.store.backends.sqlite.disk_faults import Disk, allow, faulty_disk, refuse
from tests.store.backends.sqlite.writers import batch
from tests.store.conftest import Clock
from tests.store.store_calls import ALL, VALIDATE, dump, head, ids, make, make_pair, request, run, update
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS

LARGE = f'{{"k":"{"x" * 30_000}"}}'


@pytest.fixture
def store(database: SqliteDatabase, clock: Clock) -> RelationshipStore:
    return RelationshipStore(database, clock)


# A full disk.


def full_after(database: SqliteDatabase, pages: int) -> None:
    used = database._writer.pragma("page_count")
    database._writer.pragma("max_page_count", used + pages)


def make_room(database: SqliteDatabase) -> None:
    database._writer.pragma("max_page_count", 1_000_000)


def test_a_full_disk_rejects_a_write_and_the_store_recovers_when_space_is_freed(
    database: SqliteDatabase, store: RelationshipStore
) -> None:
    full_after(database, 30)
    acknowledged: list[str] = []

    def fill() -> None:
        for number in range(100):
            made = make(store, PATIENT, f"p{number:02}", annotations=LARGE)
            acknowledged.append(made.patient_id)

    with pytest.raises(errors.StoreFull):
        fill()
    before = dump(store)
    with pytest.raises(errors.StoreFull):
        make(store, PATIENT, "q", annotations=LARGE)
    assert acknowledged
    assert dump(store) == before
    assert ids(store, PATIENT) == acknowledged
    make_room(database)
    make(store, PATIENT, "q", annotations=LARGE)
    assert ids(store, PATIENT) == [*acknowledged, "q"]
    assert run(store, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("pages", range(1, 14, 3))
def test_a_full_disk_keeps_exactly_the_acknowledged_writes_of_a_batch(
    database: SqliteDatabase, store: RelationshipStore, pages: int
) -> None:
    make(store, PATIENT, "before")
    full_after(database, pages)
    names = [f"p{number}" for number in range(8)]
    works = [
        partial(make, store, PATIENT, name, annotations=LARGE if number % 2 else "{}")
        for number, name in enumerate(names)
    ]
    results = batch(database, works)
    kept = [name for name, result in zip(names, results, strict=True) if isinstance(result, Patient)]
    assert {type(result) for result in results} <= {Patient, errors.StoreFull}
    assert errors.StoreFull in {type(result) for result in results}
    assert ids(store, PATIENT) == ["before", *kept]
    assert head(store) == 1 + len(kept)
    make_room(database)
    make(store, PATIENT, "q")


def test_a_disk_that_fills_up_fails_every_write_of_the_transaction(path: Path, clock: Clock) -> None:
    with faulty_disk() as disk:
        database = SqliteDatabase(path)
        database._writer.pragma("cache_size", 10)  # so that pages are written before the commit
        store = RelationshipStore(database, clock)
        before = dump(store)
        disk.before = refuse("write", "log", apsw.FullError("full"))
        works = [partial(make, store, PATIENT, f"p{n}", annotations=LARGE) for n in range(4)]
        results = batch(database, [lambda: make(store, PATIENT, "small"), *works])
        disk.before = allow
        assert {type(result) for result in results} == {errors.StoreFull}
        assert dump(store) == before
        make(store, PATIENT, "q")
        database.close()


# Failing disks.


@pytest.fixture
def disk() -> Iterator[Disk]:
    with faulty_disk() as disk:
        yield disk


@pytest.fixture
def fragile(disk: Disk, path: Path, clock: Clock) -> Iterator[RelationshipStore]:
    """A store with a pair in it, on a disk that can fail."""
    store = RelationshipStore(SqliteDatabase(path), clock)
    make_pair(store)
    yield store
    disk.before = allow
    store.close()


def forget_pages() -> None:
    """Empties the caches, so that later reads reach the file."""
    for connection in apsw.connections():
        connection.pragma("wal_checkpoint", "TRUNCATE")
        connection.release_memory()


def test_an_unreadable_disk_is_unavailable_and_the_store_recovers(disk: Disk, fragile: RelationshipStore) -> None:
    for call in (
        lambda: fragile.get(PATIENT, "p"),
        lambda: fragile.batch_get(PATIENT, ["p"]),
        lambda: fragile.list_records(PATIENT, requests.RecordQuery(), ALL),
        lambda: fragile.list_patient_therapists(requests.CaseloadQuery("p"), ALL),
        lambda: update(fragile, PATIENT, "p", email="a@b"),
    ):
        forget_pages()
        disk.before = refuse("read", "file", apsw.IOError("broken"))
        with pytest.raises(errors.StoreUnavailable):
            call()
        disk.before = allow
        call()
    assert fragile.get(PATIENT, "p").email == "a@b"


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_disk_failure_in_a_commit_is_unknown_and_a_replay_settles_it(
    disk: Disk, fragile: RelationshipStore, operation: str
) -> None:
    call = request("3b241101-e2bb-4255-8caf-4136c566a962")
    before = dump(fragile)
    disk.before = refuse(operation, "log", apsw.IOError("broken"))
    with pytest.raises(errors.OutcomeUnknown):
        fragile.create(PATIENT, "", {"display_name": "Ada"}, call)
    disk.before = allow
    assert dump(fragile) == before
    first = fragile.create(PATIENT, "", {"display_name": "Ada"}, call)
    assert fragile.create(PATIENT, "", {"display_name": "Ada"}, call) == first
    assert len(ids(fragile, PATIENT)) == 2


def test_a_disk_that_fills_up_in_a_commit_writes_nothing(disk: Disk, fragile: RelationshipStore) -> None:
    before = dump(fragile)
    disk.before = refuse("write", "log", apsw.FullError("full"))
    with pytest.raises(errors.StoreFull):
        make(fragile, PATIENT, "q")
    disk.before = allow
    assert dump(fragile) == before
    make(fragile, PATIENT, "q")


def test_a_failed_commit_fails_every_call_of_its_batch_and_is_unknown_only_for_those_that_wrote(
    disk: Disk, fragile: RelationshipStore
) -> None:
    database = fragile._database
    assert isinstance(database, SqliteDatabase)

    def fail_from_the_commit_on() -> bool:
        disk.before = refuse("write", "log", apsw.IOError("broken"))
        return False

    database._writer.set_commit_hook(fail_from_the_commit_on)
    results = batch(
        database,
        [
            lambda: make(fragile, PATIENT, "q"),
            lambda: make(fragile, PATIENT, "q"),
            lambda: fragile.create(PATIENT, "v", {"display_name": "Ada"}, VALIDATE),
            lambda: make(fragile, PATIENT, "r"),
        ],
    )
    database._writer.set_commit_hook(None)
    disk.before = allow
    unknown, nothing_written = errors.OutcomeUnknown, errors.StoreUnavailable
    assert [type(result) for result in results] == [unknown, nothing_written, nothing_written, unknown]
    assert ids(fragile, PATIENT) == ["p"]


def test_a_disk_error_never_exposes_the_drivers_message(disk: Disk, fragile: RelationshipStore) -> None:
    forget_pages()
    disk.before = refuse("read", "file", apsw.IOError("canary"))
    with pytest.raises(errors.StoreUnavailable) as refusal:
        fragile.get(PATIENT, "p")
    assert "canary" not in repr((refusal.value, refusal.value.args, refusal.value.metadata))
    assert refusal.value.__suppress_context__


# What remains in the file.


def test_no_file_holds_a_changed_or_erased_value_after_the_close(path: Path, store: RelationshipStore) -> None:
    """Only for a few records: SQLite moves many between pages, and secure_delete can then miss a copy."""
    for number in range(6):
        make(
            store,
            PATIENT,
            f"p{number}",
            display_name=f"Canaryname {number}",
            email=f"canarymail{number}@example.org",
            identifiers=f'[["urn:mrn","canarymrn{number}"]]',
            annotations=f'{{"k":"canarynote{number}"}}',
        )
    for number in range(3):
        update(store, PATIENT, f"p{number}", display_name="Ada", email="", identifiers="[]", annotations="{}")
    run(store, "DELETE FROM patient WHERE email <> ''")
    run(store, "DELETE FROM patient_version")  # they hold what was changed
    store.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    content = path.read_bytes().lower()
    assert [word for word in (b"canaryname", b"canarymail", b"canarymrn", b"canarynote") if word in content] == []


# A disk that hangs.


def test_the_readiness_check_fails_only_while_a_commit_hangs(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(operation: str, _file: str) -> None:
        if operation == "sync":
            hangs.set()
            goes_on.wait(HUNG_SECONDS)

    with faulty_disk() as disk, closing(SqliteDatabase(path)) as database:
        store = RelationshipStore(database, clock)
        make(store, PATIENT, "p0")
        disk.before = hang
        with futures.ThreadPoolExecutor(1) as writing:
            written = writing.submit(make, store, PATIENT, "p1")
            try:
                assert hangs.wait(HUNG_SECONDS)
                monkeypatch.setattr(sqlite, "_STUCK_SECONDS", NEVER_SECONDS)
                database.check()
                monkeypatch.setattr(sqlite, "_STUCK_SECONDS", 0.0)
                with pytest.raises(errors.StoreUnavailable):
                    database.check()
            finally:
                goes_on.set()
            written.result()
        database.check()
