"""Files of an open database that are lost, at moments that only a test in the same process can choose."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from caseload_server.domain import errors
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.store.backends.sqlite import file_check
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.backends.sqlite.file_check import check_files, is_open_elsewhere

from tests.store.backends.sqlite.disk_faults import Disk, allow, faulty_disk
from tests.store.backends.sqlite.writers import locked
from tests.store.conftest import Clock
from tests.store.store_calls import ids, make
from tests.support.waiting import join


@pytest.fixture
def disk() -> Iterator[Disk]:
    with faulty_disk() as faulty:
        yield faulty


def test_a_log_that_is_lost_during_a_commit_leaves_its_outcome_unknown(disk: Disk, path: Path, clock: Clock) -> None:
    database = SqliteDatabase(path)
    store = RelationshipStore(database, clock)
    make(store, PATIENT, "before")

    def delete_log(operation: str, file: str) -> None:
        if (operation, file) == ("sync", "log"):
            disk.before = allow
            Path(f"{path}-wal").unlink()

    disk.before = delete_log
    with pytest.raises(errors.OutcomeUnknown):
        make(store, PATIENT, "during")
    with pytest.raises(errors.StoreUnavailable):
        make(store, PATIENT, "after")
    with closing(
        apsw.Connection(f"{path.as_uri()}?immutable=1", flags=apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READONLY)
    ) as crashed:
        assert list(crashed.execute("SELECT patient_id FROM patient")) == [("before",), ("during",)]
    database.close()


def test_the_check_saves_a_lost_log_of_an_idle_server(path: Path, clock: Clock) -> None:
    database = SqliteDatabase(path)
    store = RelationshipStore(database, clock)
    make(store, PATIENT, "p")
    database.check()
    Path(f"{path}-wal").unlink()
    before = path.stat().st_mtime_ns
    with pytest.raises(errors.StoreUnavailable) as failed:
        database.check()
    assert "all acknowledged writes are in the database file" in failed.value.detail
    assert path.stat().st_mtime_ns > before
    assert ids(store, PATIENT) == ["p"]
    store.close()


def test_another_log_with_content_is_not_mixed_with_the_lost_one(path: Path, clock: Clock) -> None:
    """The next start would replay its older pages over the newer ones."""
    database = SqliteDatabase(path)
    store = RelationshipStore(database, clock)
    make(store, PATIENT, "p")
    log = Path(f"{path}-wal")
    content = log.read_bytes()
    log.unlink()
    log.write_bytes(content[:5000])
    before = path.read_bytes()
    with pytest.raises(errors.StoreUnavailable) as failed:
        database.check()
    assert "move it back, or stop the server with SIGTERM" in failed.value.detail
    assert path.read_bytes() == before
    store.close()


def test_a_thread_without_a_connection_does_not_open_another_log(path: Path, clock: Clock) -> None:
    """It would read an old state of the database as if nothing was wrong."""
    store = RelationshipStore(SqliteDatabase(path), clock)
    make(store, PATIENT, "p")
    Path(f"{path}-wal").unlink()
    found: list[object] = []

    def read() -> None:
        try:
            found.append(ids(store, PATIENT))
        except errors.StoreUnavailable as error:
            found.append(error.reason)

    reader = threading.Thread(target=read)
    reader.start()
    join(reader)
    assert found == ["STORE_UNAVAILABLE"]
    assert not Path(f"{path}-wal").exists()
    store.close()


def test_only_a_lock_of_another_process_counts(path: Path) -> None:
    assert not is_open_elsewhere(path)
    with closing(SqliteDatabase(path)):
        assert not is_open_elsewhere(path)
    with locked(path):
        assert is_open_elsewhere(path)
        check_files(path)
    assert not is_open_elsewhere(path)


def test_a_check_does_not_release_the_locks_of_this_process(path: Path) -> None:
    """Closing any descriptor of a file releases the locks of the whole process on it."""
    with closing(SqliteDatabase(path)):
        check_files(path)
        assert not file_check.is_open_elsewhere(path)
        assert "caseload.db" in held_locks(path)


def held_locks(path: Path) -> str:
    """Returns the name of the file if the kernel knows a lock on it."""
    inode = path.stat().st_ino
    return path.name if any(f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines()) else ""
