"""How migrate creates a SQLite file, and which files it rejects."""

import os
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from caseload_server.domain.records import Assignment, Patient, Therapist
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.migrations import Migration, SchemaError, migrations
from caseload_server.store.backends.sqlite.connection import APPLICATION_ID
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.backends.sqlite.migrate import migrate, pending

from tests.store.first_version import COLUMNS, PRUNED, WRITES
from tests.store.store_calls import TABLES, make, run
from tests.support.waiting import HUNG_SECONDS, join
from tests.support.write_lock import wait_for_locks

LATER = Migration("9999_later", "CREATE TABLE later (x INTEGER) STRICT")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "caseload.db"


def tables(path: Path) -> set[str]:
    connection = apsw.Connection(str(path))
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    connection.close()
    return names


def left_alone(path: Path, reason: str) -> None:
    """Asserts that migrate and pending reject the file, do not change it and leave no other file."""
    before = path.read_bytes()
    for look in (migrate, pending):
        with pytest.raises((SchemaError, apsw.Error), match=reason):
            look(path)
        assert path.read_bytes() == before
        assert [entry.name for entry in path.parent.iterdir()] == [path.name], look


def test_a_new_file_gets_every_migration_and_its_own_key(path: Path, tmp_path: Path) -> None:
    assert pending(path) == migrations("sqlite")
    assert not path.exists()
    assert migrate(path) == migrations("sqlite")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert tables(path) == {*TABLES, "migration"}
    migrate(tmp_path / "other.db")
    stores = [RelationshipStore(SqliteDatabase(file), lambda: 1) for file in (path, tmp_path / "other.db")]
    ids, secrets = ({getattr(store.keys, name) for store in stores} for name in ("store_id", "secret"))
    assert len(ids) == len(secrets) == 2
    for store in stores:
        store.close()


def test_migrating_again_does_nothing(path: Path) -> None:
    migrate(path)
    store = RelationshipStore(SqliteDatabase(path), lambda: 1)
    made, keys = make(store, THERAPIST, "t"), store.keys
    store.close()
    assert pending(path) == []
    assert migrate(path) == []
    store = RelationshipStore(SqliteDatabase(path), lambda: 1)
    assert (store.keys, store.get(THERAPIST, "t")) == (keys, made)
    store.close()


def test_a_new_migration_runs_on_a_file_in_use(path: Path) -> None:
    migrate(path)
    store = RelationshipStore(SqliteDatabase(path), lambda: 1)
    made = make(store, THERAPIST, "t")
    assert pending(path, [*migrations("sqlite"), LATER]) == [LATER]
    assert migrate(path, [*migrations("sqlite"), LATER]) == [LATER]
    assert store.get(THERAPIST, "t") == made
    make(store, THERAPIST, "u")
    store.close()
    assert "later" in tables(path)


def contents(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """The rows of the tables of the first version."""
    with closing(apsw.Connection(str(path))) as connection:
        return {table: list(connection.execute(f"SELECT {columns} FROM {table}")) for table, columns in COLUMNS.items()}


@pytest.fixture
def first_version(path: Path) -> Path:
    """A file of the first version, with rows that it wrote."""
    migrate(path, migrations("sqlite")[:1])
    with closing(apsw.Connection(str(path))) as connection:
        for statement in WRITES:
            connection.execute(statement)
    return path


def test_a_file_of_the_first_migration_keeps_its_rows_and_can_be_purged(first_version: Path) -> None:
    before = contents(first_version)
    assert migrate(first_version) == migrations("sqlite")[1:]
    assert contents(first_version) == before
    store = RelationshipStore(SqliteDatabase(first_version), lambda: 1)
    assert list(store.purger.purge_records(PATIENT, 2)) == [(1, 0)]
    assert store.get(PATIENT, "kept").etag == "e"
    store.close()


def test_versions_are_complete_since_the_latest_change_though_the_log_was_pruned(first_version: Path) -> None:
    with closing(apsw.Connection(str(first_version))) as connection:
        for statement in PRUNED:
            connection.execute(statement)
    migrate(first_version)
    with closing(SqliteDatabase(first_version)) as database:
        store = RelationshipStore(database, lambda: 1)
        assert run(store, "SELECT versions_revision, versions_us FROM store") == [(2, 7)]


def test_the_step_of_the_chain_is_refused_while_an_instance_uses_the_file(first_version: Path) -> None:
    instance = SqliteDatabase(first_version)
    with pytest.raises(SchemaError, match="is served: stop its instances first"):
        migrate(first_version)
    assert pending(first_version) == migrations("sqlite")[1:]
    instance.close()
    assert migrate(first_version) == migrations("sqlite")[1:]


def test_a_write_of_an_older_version_after_the_step_of_the_chain_fails(first_version: Path) -> None:
    """An instance may open the file just before the migration."""
    migrate(first_version)
    with (
        closing(apsw.Connection(str(first_version))) as older,
        pytest.raises(apsw.ConstraintError, match="hash_version"),
    ):
        older.execute(
            "INSERT INTO change_set (revision, committed_us, actor, method, request_id) VALUES (3, 1, '', '', '')"
        )


def test_a_failed_migration_leaves_the_schema_unchanged(path: Path) -> None:
    migrate(path)
    before = tables(path)
    broken = Migration("9999_broken", "CREATE TABLE half (x INTEGER) STRICT; CREATE TABLE half (x INTEGER) STRICT")
    with pytest.raises(apsw.SQLError):
        migrate(path, [*migrations("sqlite"), broken])
    assert tables(path) == before
    assert pending(path) == []


def test_a_failed_first_migration_leaves_a_file_that_can_be_migrated(path: Path) -> None:
    broken = Migration("0000_broken", "CREATE TABLE half (x INTEGER) STRICT; nonsense")
    with pytest.raises(apsw.SQLError):
        migrate(path, [broken])
    assert migrate(path) == migrations("sqlite")


@pytest.mark.parametrize("turn", range(3))
def test_only_one_of_many_threads_migrates_a_new_file(path: Path, turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_locks(monkeypatch)
    done: list[list[Migration]] = []
    refusals: list[Exception] = []
    barrier = threading.Barrier(8 + turn)

    def one() -> None:
        barrier.wait()
        try:
            done.append(migrate(path))
        except (SchemaError, apsw.Error) as error:
            refusals.append(error)

    threads = [threading.Thread(target=one) for _ in range(8 + turn)]
    for thread in threads:
        thread.start()
    join(*threads)
    assert refusals == []
    assert sorted(done, key=len) == [[]] * (7 + turn) + [migrations("sqlite")]


@pytest.mark.slow
def test_only_one_of_several_processes_migrates_a_new_file(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from caseload_server.store.backends.sqlite.migrate import migrate;"
        "sys.stdin.readline(); print(len(migrate(Path(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", script, str(path)]
    starters = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("\n")
        starter.stdin.flush()
    results = [starter.communicate(timeout=HUNG_SECONDS) for starter in starters]
    assert sorted(results) == [("0\n", "")] * 3 + [(f"{len(migrations('sqlite'))}\n", "")]


def test_migrate_waits_for_another_process_that_begins_to_write_a_new_file(path: Path) -> None:
    with closing(apsw.Connection(str(path))) as other:
        other.execute("BEGIN IMMEDIATE")
        end = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
        end.start()
        assert migrate(path) == migrations("sqlite")
        end.join()


def test_migrate_rejects_a_newer_schema(path: Path) -> None:
    migrate(path, [*migrations("sqlite"), LATER])
    left_alone(path, "newer")


def test_migrate_rejects_a_changed_migration(path: Path) -> None:
    first, *rest = migrations("sqlite")
    migrate(path, [first._replace(sql=first.sql + "\n-- edited"), *rest])
    left_alone(path, f"{first.name} is not the one")


def test_migrate_rejects_the_file_of_another_application(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE migration (name TEXT, checksum TEXT)")
    connection.close()
    left_alone(path, "another application")


def test_migrate_rejects_a_file_that_only_resembles_ours(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE other (x)")
    connection.pragma("application_id", APPLICATION_ID)
    connection.close()
    left_alone(path, "another application")


def crashed(path: Path, folder: Path) -> Path:
    """Copies the file and its log as a crash leaves them. The database must be open and written to."""
    folder.mkdir()
    for file in (path, Path(f"{path}-wal")):
        shutil.copy(file, folder / file.name)
    return folder / path.name


def test_migrate_leaves_the_log_of_another_applications_crash_unchanged(path: Path, tmp_path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE other (x)")
    copy = crashed(path, tmp_path / "crashed")
    connection.close()
    before = {file.name: file.read_bytes() for file in copy.parent.iterdir()}
    for look in (migrate, pending):
        with pytest.raises(SchemaError, match="another application"):
            look(copy)
        after = {file.name: file.read_bytes() for file in copy.parent.iterdir() if not file.name.endswith("-shm")}
        assert after == before


def test_migrate_recovers_the_log_of_our_own_crash(path: Path, tmp_path: Path) -> None:
    migrate(path)
    store = RelationshipStore(SqliteDatabase(path), lambda: 1)
    made = make(store, THERAPIST, "t")
    copy = crashed(path, tmp_path / "crashed")
    store.close()
    assert pending(copy) == []
    assert migrate(copy) == []
    store = RelationshipStore(SqliteDatabase(copy), lambda: 1)
    assert store.get(THERAPIST, "t") == made
    store.close()


@pytest.mark.parametrize("content", [b"not a database, but long enough to have a header\n" * 100, b"SQLite format 3"])
def test_migrate_rejects_a_file_that_is_not_a_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    left_alone(path, "file is not a database")


def test_migrate_treats_an_empty_file_as_new(path: Path) -> None:
    path.touch()
    assert migrate(path) == migrations("sqlite")


def test_migrate_rejects_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(apsw.CantOpenError):
        migrate(tmp_path / "missing" / "caseload.db")


def test_records_are_rows_in_the_order_of_the_columns(path: Path) -> None:
    migrate(path)
    connection = apsw.Connection(str(path))
    for record in (Therapist, Patient, Assignment):
        columns = connection.execute("SELECT name FROM pragma_table_info(?)", (record.__name__.lower(),))
        assert tuple(row[0] for row in columns)[: len(record._fields)] == record._fields
    connection.close()


def test_only_the_owner_can_read_the_files_that_migrate_creates(path: Path) -> None:
    command = [sys.executable, "-m", "caseload_server", "migrate", "--database", f"sqlite:///{path}"]
    subprocess.run(command, check=True, capture_output=True, umask=0)
    before = os.umask(0)
    try:
        store = RelationshipStore(SqliteDatabase(path), lambda: 1)
        make(store, THERAPIST, "t")
        modes = {entry.name: oct(entry.stat().st_mode & 0o777) for entry in path.parent.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys([path.name, path.name + "-wal", path.name + "-shm"], "0o600")
