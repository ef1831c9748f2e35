"""The files beside a served database are deleted, moved or replaced; no acknowledged write is lost."""

import itertools
import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from caseload_server.config import Config
from caseload_server.store import THERAPIST
from caseload_server.store.backends.factory import open_store
from caseload_server.store.backends.sqlite.migrate import migrate

from tests.process.command_runner import SERVE, caseload, refusal, url
from tests.store.store_calls import ids
from tests.support.api_driver import ApiDriver
from tests.support.servers import ServerProcess
from tests.support.servers import refusal as refusal_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("unrecorded")

WRITES = 30
IN_USE = "--database: another process has the file open with other -wal or -shm files: stop or restart it first"
UNSAVED = (
    "--database: its last commits were in a -wal file that is missing, emptied or overwritten: "
    "move it back, or restore a backup"
)

COMMANDS = [
    *(("backup", "copy.db"), SERVE, ("verify",), ("export", "-"), ("import", "-"), ("log", "head"), ("migrate",)),
    *(("migrate", "--dry-run"), ("purge", "--deleted-before", "1d", "--vacuum")),
]


def beside(path: Path, *suffixes: str) -> list[Path]:
    return [Path(f"{path}{suffix}") for suffix in suffixes]


def delete_both(path: Path) -> None:
    for file in beside(path, "-wal", "-shm"):
        file.unlink()


def delete_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def delete_index(path: Path) -> None:
    Path(f"{path}-shm").unlink()


def move_both(path: Path) -> None:
    (path.parent / "away").mkdir()
    for file in beside(path, "-wal", "-shm"):
        file.rename(path.parent / "away" / file.name)


def delete_both_and_read(path: Path) -> None:
    """Another program reads the file then, which makes new, empty files beside it."""
    delete_both(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT head_revision FROM store").fetchall()


def replace_log(path: Path) -> None:
    """As a tool does that copies an older -wal file back."""
    log = Path(f"{path}-wal")
    old = log.with_suffix(".old")
    old.touch(0o600)
    old.write_bytes(log.read_bytes()[:40_000])
    old.rename(log)


def replace_both(path: Path) -> None:
    replace_log(path)
    index = Path(f"{path}-shm")
    shutil.copy(index, f"{index}.old")
    Path(f"{index}.old").rename(index)


def replace_database(path: Path) -> None:
    """As a tool does that replaces a file by a restored one."""
    other = path.with_name("other.db")
    migrate(other)
    path.rename(path.with_name("away.db"))
    other.rename(path)


WAYS: list[Callable[[Path], None]] = [
    *(delete_both, delete_log, delete_index, move_both, delete_both_and_read, replace_log, replace_both)
]


def write(server: ServerProcess, *names: str) -> None:
    with ApiDriver(server.address) as api:
        api.therapists(*names)


def events(log: str, event: str) -> list[dict[str, str]]:
    return [line for line in map(json.loads, log.splitlines()) if line["event"] == event]


def therapists(path: Path) -> list[str]:
    store = open_store(Config(database=url(path)), lambda: 1)
    with closing(store):
        return ids(store, THERAPIST)


@pytest.mark.parametrize("lose", WAYS, ids=lambda lose: lose.__name__)
def test_a_lost_file_stops_writes_and_commands_and_a_kill_loses_nothing(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    path, names = tmp_path / "caseload.db", [f"t{number:02}" for number in range(WRITES)]
    with ServerProcess(url(path)) as server:
        write(server, *names)
        lose(path)
        with pytest.raises(grpc.RpcError) as refused:
            write(server, "late")
        assert refusal_of(refused.value).reason == "STORE_UNAVAILABLE"
        for command in COMMANDS if lose is delete_both else COMMANDS[:2]:
            assert refusal(tmp_path, *command, "--database", url(path)) == IN_USE
        eventually(lambda: caseload(tmp_path, "check", "--address", server.address).returncode)
        if lose in {
            replace_log,
            replace_both,
        }:  # the next start would replay the old -wal file, so nothing may be written before it
            assert server.stop()[0] == 0
        else:
            server.kill()
            assert server.process.stderr
            [event] = events(server.process.stderr.read(), "not ready")
            assert event["reason"] == "StoreUnavailable"
            assert "was deleted, moved or replaced while it was open" in event["detail"]
            assert "all acknowledged writes are in the database file: restart the server" in event["detail"]
    assert therapists(path) == names
    assert caseload(tmp_path, "verify", "--database", url(path)).returncode == 0


@pytest.mark.parametrize("way", ["emptied", "overwritten"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_emptied_log_stops_writes_and_is_not_copied_into_the_database(
    tmp_path: Path, way: str, number: signal.Signals
) -> None:
    path = tmp_path / "caseload.db"
    log = Path(f"{path}-wal")
    with ServerProcess(url(path)) as server:
        write(server, "first")
        before = path.read_bytes()
        with log.open("r+b") as opened:
            opened.truncate(0 if way == "emptied" else None)
            opened.write(b"" if way == "emptied" else bytes(4096))
        reasons = []
        for name in ("second", "third"):
            with pytest.raises(grpc.RpcError) as failed:
                write(server, name)
            reasons.append(refusal_of(failed.value).reason)
        assert reasons[1] == "STORE_UNAVAILABLE"
        eventually(lambda: caseload(tmp_path, "check", "--address", server.address).returncode)
        _, events_text = server.stop(number)
    [event] = events(events_text, "not ready")
    assert "the -wal file was emptied or overwritten while it was open" in event["detail"]
    assert path.read_bytes() == before
    for command in COMMANDS[:2]:
        assert refusal(tmp_path, *command, "--database", url(path)) == UNSAVED


def test_commands_reject_a_database_that_replaced_a_served_one(tmp_path: Path) -> None:
    """SQLite would read the log of the served one as part of it."""
    path = tmp_path / "caseload.db"
    with ServerProcess(url(path)) as server:
        write(server, "a")
        replace_database(path)
        for command in (("backup", "copy.db"), ("verify",), ("import", "-"), SERVE):
            assert refusal(tmp_path, *command, "--database", url(path)) == IN_USE
        (tmp_path / "away.db").rename(path)
        write(server, "b")
        server.kill()
    assert therapists(path) == ["a", "b"]


def test_a_backup_beside_the_log_of_another_database_is_rejected(tmp_path: Path, crashed: Path) -> None:
    assert caseload(tmp_path, "backup", "copy.db", "--database", url(crashed)).returncode == 0
    (tmp_path / "copy.db").rename(crashed)
    for command in (SERVE, ("verify",), ("migrate",)):
        line = refusal(tmp_path, *command, "--database", url(crashed))
        assert line == "--database: a -wal file of another database is beside it: move that file away"
    for file in beside(crashed, "-wal", "-shm"):
        file.unlink()
    assert therapists(crashed) == ["a"]


@pytest.mark.parametrize("leave_empty", [False, True])
@pytest.mark.parametrize("command", [SERVE, ("migrate",)])
def test_no_start_creates_a_database_over_the_log_of_a_missing_one(
    tmp_path: Path,
    crashed: Path,
    command: tuple[str, ...],
    leave_empty: bool,  # noqa: FBT001
) -> None:
    """SQLite would delete the log with the last commits."""
    crashed.rename(tmp_path / "away.db")
    if leave_empty:
        crashed.touch(0o600)
    fault = "the file is missing or empty, but its -wal file has commits: move it back, or move that file away"
    assert refusal(tmp_path, *command, "--database", url(crashed)) == f"--database: {fault}"
    (tmp_path / "away.db").rename(crashed)
    assert therapists(crashed) == ["a"]


def test_writes_continue_after_moved_files_are_moved_back(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    with ServerProcess(url(path)) as server:
        write(server, "a")
        move_both(path)
        with pytest.raises(grpc.RpcError):
            write(server, "late")
        for file in (tmp_path / "away").iterdir():
            file.rename(tmp_path / file.name)
        write(server, "b")
        server.kill()
    assert therapists(path) == ["a", "b"]


@pytest.mark.parametrize("command", [SERVE, ("migrate",), ("verify",), ("backup", "copy.db"), ("import", "-")])
def test_a_database_whose_log_was_deleted_after_a_kill_is_rejected(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / "caseload.db"
    with ServerProcess(url(path)) as server:
        write(server, "a")
        server.kill()
    Path(f"{path}-wal").rename(tmp_path / "away")
    assert refusal(tmp_path, *command, "--database", url(path)) == UNSAVED
    (tmp_path / "away").rename(Path(f"{path}-wal"))
    assert therapists(path) == ["a"]


def test_a_stale_file_of_an_earlier_boot_does_not_stop_a_start(tmp_path: Path) -> None:
    """Nothing syncs the -shm file. After a power cut it may describe a log that was emptied since."""
    path = tmp_path / "caseload.db"
    with ServerProcess(url(path)) as server:
        write(server, "a")
        server.kill()
    stale = Path(f"{path}-shm").read_bytes()
    assert therapists(path) == ["a"]
    Path(f"{path}-shm").touch(0o600)
    Path(f"{path}-shm").write_bytes(stale)
    assert refusal(tmp_path, "verify", "--database", url(path)) == UNSAVED
    os.utime(f"{path}-shm", (0, 0))
    assert therapists(path) == ["a"]


def test_a_file_without_tables_is_no_empty_store(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    path.touch(0o600)
    for command in (("backup", "copy.db"), ("verify",), ("export", "-"), ("log", "head")):
        line = refusal(tmp_path, *command, "--database", url(path))
        assert line == "--database: it holds no caseload database"


# --- other names of the file ---


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A database whose writes are all in the -wal file of a killed server."""
    path = tmp_path / "real" / "caseload.db"
    path.parent.mkdir()
    with ServerProcess(url(path)) as server:
        write(server, "a")
        server.kill()
    return path


def test_a_dry_run_through_a_symbolic_link_changes_nothing(tmp_path: Path, crashed: Path) -> None:
    (tmp_path / "link.db").symlink_to(crashed)
    (tmp_path / "folder").symlink_to(crashed.parent, target_is_directory=True)
    before = {file.name: file.read_bytes() for file in beside(crashed, "", "-wal")}
    for name in (tmp_path / "link.db", tmp_path / "folder" / "caseload.db"):
        ended = caseload(tmp_path, "migrate", "--dry-run", "--database", url(name))
        assert (ended.returncode, ended.stdout) == (0, "")
        assert caseload(tmp_path, "verify", "--database", url(name)).stdout.startswith("1 store, 1 therapist,")
        assert {file.name: file.read_bytes() for file in beside(crashed, "", "-wal")} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "link.db", "real"]


def test_a_server_on_a_symbolic_link_notices_when_the_link_changes(tmp_path: Path, crashed: Path) -> None:
    other, link = tmp_path / "other.db", tmp_path / "link.db"
    shutil.copy(crashed, other)
    link.symlink_to(crashed)
    with ServerProcess(url(link)) as server:
        write(server, "b")
        link.unlink()
        link.symlink_to(other)
        with pytest.raises(grpc.RpcError):
            write(server, "c")
    assert therapists(crashed) == ["a", "b"]


def test_a_link_to_no_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "missing.db")
    for command in (SERVE, ("migrate",), ("restore", "copy.db"), ("verify",)):
        line = refusal(tmp_path, *command, "--database", url(tmp_path / "link.db"))
        assert line == "--database: is a symbolic link to a file that does not exist"


def test_a_copy_is_never_written_through_a_symbolic_link(tmp_path: Path, database: str) -> None:
    for name in ("copy.db", "other.db-wal"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere.db")
    for command, name in itertools.product(("backup", "export"), ("copy.db", "other.db")):
        line = refusal(tmp_path, command, name, "--database", database)
        assert line.startswith("FILE: the file already exists")


def test_a_hard_link_is_no_second_database(tmp_path: Path, crashed: Path) -> None:
    other = tmp_path / "other.db"
    other.hardlink_to(crashed)
    for path in (crashed, other):
        for command in (SERVE, ("verify",), ("backup", "copy.db"), ("migrate",)):
            line = refusal(tmp_path, *command, "--database", url(path))
            assert line.startswith("--database: has a second name (a hard link)")
    other.unlink()
    assert therapists(crashed) == ["a"]


def test_a_backup_with_hard_links_can_be_verified(tmp_path: Path, crashed: Path) -> None:
    """Tools that keep many generations of backups share equal files."""
    assert caseload(tmp_path, "backup", "copy.db", "--database", url(crashed)).returncode == 0
    (tmp_path / "same.db").hardlink_to(tmp_path / "copy.db")
    assert caseload(tmp_path, "verify", "--database", url(tmp_path / "same.db")).returncode == 0
