"""The size of SQLite's write-ahead log after reads that kept it from being reused."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.store.backends.sqlite import log_size
from caseload_server.store.backends.sqlite.database import SqliteDatabase

from tests.store.conftest import Clock
from tests.store.store_calls import ids, make, run
from tests.support.waiting import eventually, join

MAX_BYTES = 2**20
LARGE = f'{{"k":"{"x" * 30_000}"}}'


@pytest.fixture
def store(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[RelationshipStore]:
    monkeypatch.setattr(log_size, "MAX_BYTES", MAX_BYTES)
    monkeypatch.setattr(log_size, "INTERVAL_SECONDS", 0.01)
    with closing(RelationshipStore(SqliteDatabase(path), clock)) as store:
        yield store


def size(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


@contextmanager
def read(path: Path) -> Iterator[None]:
    """Another process reads the file, as a backup does, for the duration of the with block."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as reader:
        reader.execute("BEGIN")
        list(reader.execute("SELECT head_revision FROM store"))
        yield


def fill(store: RelationshipStore, path: Path) -> int:
    """Writes until the log is larger than its limit. Returns the number of patients."""
    number = 0
    while size(path) <= 2 * MAX_BYTES:
        make(store, PATIENT, f"p{number:03}", annotations=LARGE)
        number += 1
    return number


def test_a_log_that_a_long_read_made_large_is_emptied_when_the_read_has_ended(
    store: RelationshipStore, path: Path
) -> None:
    with read(path):
        made = fill(store, path)
        assert size(path) > MAX_BYTES
    eventually(lambda: size(path) == 0)  # without a write
    assert len(ids(store, PATIENT)) == made
    assert run(store, "PRAGMA integrity_check") == [("ok",)]


def test_a_large_log_is_emptied_beside_writes(store: RelationshipStore, path: Path) -> None:
    with read(path):
        made, stop = fill(store, path), threading.Event()
    written: list[str] = []

    def write() -> None:
        while not stop.is_set():
            written.append(make(store, PATIENT, f"q{len(written):05}").patient_id)

    writing = threading.Thread(target=write, name="writes")
    writing.start()
    eventually(lambda: size(path) <= MAX_BYTES)
    stop.set()
    join(writing)
    assert len(list(run(store, "SELECT patient_id FROM patient"))) == made + len(written)
