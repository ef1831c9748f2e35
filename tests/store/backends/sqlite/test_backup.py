"""Backups of the embedded database, and restores."""

import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from caseload_server.domain import errors
from caseload_server.domain.requests import ChangeQuery
from caseload_server.store import THERAPIST, RelationshipStore
from caseload_server.store.backends.migrations import SchemaError
from caseload_server.store.backends.sqlite import backup as backups
from caseload_server.store.backends.sqlite.backup import backup, restore
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.backends.sqlite.migrate import migrate
from caseload_server.store.portability.chain_check import broken_chain

from tests.store.conftest import Clock
from tests.store.store_calls import head, ids, make
from tests.support.waiting import join


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.db"
    migrate(file)
    return file


@pytest.fixture
def store(source: Path, clock: Clock) -> Iterator[RelationshipStore]:
    opened = RelationshipStore(SqliteDatabase(source), clock)
    yield opened
    opened.close()


def content(file: Path, clock: Clock) -> tuple[str, int, list[str]]:
    """The id, the head and the therapists of the store in a file."""
    opened = RelationshipStore(SqliteDatabase(file), clock)
    found = opened.keys.store_id, head(opened), ids(opened, THERAPIST)
    opened.close()
    return found


def test_a_backup_and_a_restore_keep_the_head_of_the_log(
    tmp_path: Path, source: Path, store: RelationshipStore, clock: Clock
) -> None:
    make(store, THERAPIST, "t")
    backup(source, tmp_path / "copy.db")
    restore(tmp_path / "copy.db", tmp_path / "restored.db")
    restored = RelationshipStore(SqliteDatabase(tmp_path / "restored.db"), clock)
    assert restored.log_head() == store.log_head()
    for opened in (store, restored):
        make(opened, THERAPIST, "u")
        with opened._database.snapshot() as transaction:
            assert list(broken_chain(transaction)) == []
    restored.close()


def test_a_backup_during_writes_holds_exactly_one_revision(
    tmp_path: Path, source: Path, store: RelationshipStore, clock: Clock
) -> None:
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set() and number < 1000:
            make(store, THERAPIST, f"t{number:04}")
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            copy = tmp_path / f"copy{number}.db"
            revision = backup(source, copy)
            store_id, at, found = content(copy, clock)
            assert (store_id, at, len(found)) == (store.keys.store_id, revision, revision)
    finally:
        done.set()
        join(writer)


def test_writes_during_a_backup_neither_enter_nor_restart_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, store: RelationshipStore, clock: Clock
) -> None:
    monkeypatch.setattr(backups, "_PAGES_PER_STEP", 1)
    make(store, THERAPIST, "before")
    bits: list[int] = []

    def write(size: int) -> None:
        bits.append(size)
        assert len(bits) < 1000
        make(store, THERAPIST, f"t{len(bits)}")

    assert backup(source, tmp_path / "copy.db", write) == 1
    assert len(bits) > 10
    assert sum(bits) == (tmp_path / "copy.db").stat().st_size
    assert content(tmp_path / "copy.db", clock)[1:] == (1, ["before"])


def test_a_restored_copy_is_a_new_store_that_rejects_old_revisions(
    tmp_path: Path, source: Path, store: RelationshipStore, clock: Clock
) -> None:
    make(store, THERAPIST, "t")
    old = store.keys.revision(head(store))
    backup(source, tmp_path / "copy.db")
    restore(tmp_path / "copy.db", tmp_path / "again.db")
    again = RelationshipStore(SqliteDatabase(tmp_path / "again.db"), clock)
    assert again.keys.store_id != store.keys.store_id
    assert ids(again, THERAPIST) == ["t"]
    with pytest.raises(errors.RevisionForeign):
        again.list_changes(ChangeQuery(), old, 10)
    again.close()


@pytest.mark.parametrize("leftover", ["", "-wal", "-shm", "-journal"])
def test_backup_and_restore_reject_a_target_with_leftover_files(tmp_path: Path, source: Path, leftover: str) -> None:
    backup(source, tmp_path / "copy.db")
    target = tmp_path / "target.db"
    there = tmp_path / f"target.db{leftover}"
    there.write_bytes(b"what was there")
    for copy in (backup, restore):
        with pytest.raises(FileExistsError):
            copy(tmp_path / "copy.db", target)
    assert there.read_bytes() == b"what was there"


@pytest.mark.parametrize(("junk", "refusal"), [(b"", SchemaError), (b"no database at all" * 100, apsw.NotADBError)])
def test_a_restore_rejects_a_foreign_file_and_leaves_nothing(
    tmp_path: Path, junk: bytes, refusal: type[Exception]
) -> None:
    (tmp_path / "junk").write_bytes(junk)
    with pytest.raises(refusal):
        restore(tmp_path / "junk", tmp_path / "target.db")
    assert [file.name for file in tmp_path.iterdir()] == ["junk"]


@pytest.mark.slow
def test_a_restore_rejects_a_damaged_copy_and_leaves_nothing(
    tmp_path: Path, source: Path, store: RelationshipStore
) -> None:
    for number in range(300):
        make(store, THERAPIST, f"t{number}")
    copy = tmp_path / "copy.db"
    backup(source, copy)
    pages = bytearray(copy.read_bytes())
    pages[8192:-4096] = bytes(len(pages) - 8192 - 4096)
    copy.write_bytes(pages)
    with pytest.raises((SchemaError, apsw.Error)):
        restore(copy, tmp_path / "target.db")
    assert not [file for file in tmp_path.iterdir() if "target" in file.name]


def test_a_backup_is_rejected_while_another_one_to_the_same_file_ends(
    tmp_path: Path, source: Path, store: RelationshipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, THERAPIST, "t")
    make_folder = Path.mkdir

    def find_folder_of_another(path: Path, mode: int) -> None:
        make_folder(path, mode)
        path.rmdir()
        raise FileExistsError

    monkeypatch.setattr(Path, "mkdir", find_folder_of_another)
    with pytest.raises(FileExistsError, match="another process is writing the file"):
        backup(source, tmp_path / "copy.db")


def test_two_concurrent_backups_do_not_interfere(tmp_path: Path, source: Path, store: RelationshipStore) -> None:
    make(store, THERAPIST, "t")
    outcomes: list[object] = []

    def copy() -> None:
        try:
            outcomes.append(backup(source, tmp_path / "copy.db"))
        except FileExistsError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=copy) for _ in range(4)]
    for thread in threads:
        thread.start()
    join(*threads)
    assert sorted(map(str, outcomes)) == ["1", *["<class 'FileExistsError'>"] * 3]
    assert sorted(file.name for file in tmp_path.glob("*copy.db*")) == ["copy.db"]
