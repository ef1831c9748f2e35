"""A purge leaves no byte of erased records in the file or its log."""

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import apsw
import pytest
from caseload_server.config import Config
from caseload_server.store import PATIENT, THERAPIST
from caseload_server.store.backends.factory import open_store
from caseload_server.store.backends.sqlite import vacuum as vacuums

from tests.process.command_runner import caseload, url
from tests.store.store_calls import assign, delete, make, run, update
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS

CANARY = "Zebrafinch"
MANY = 400


def planted(path: Path) -> None:
    """Adds many deleted people, some once named or treated with the canary."""
    store = open_store(Config(database=url(path)), lambda: 1)
    make(store, THERAPIST, "t")
    for number in range(MANY):  # in another order than the ids, so that pages split and merge
        one = f"p{number * 7919 % MANY:04}"
        make(store, PATIENT, one, display_name=f"{CANARY} {'x' * (number % 90)}", email=f"{CANARY}{number}@b")
        update(store, PATIENT, one, display_name=f"Other {CANARY} {number}")
        assign(store, "t", one, focus=CANARY)
        if number % 3:
            update(store, PATIENT, one, display_name="Ann Lee", email="")
        delete(store, PATIENT, one, force=True)
    store.close()


def traces(path: Path) -> int:
    """How often the canary is in the file and its side files, as written or as a search word."""
    contents = b"".join(file.read_bytes() for file in path.parent.iterdir()).lower()
    return contents.count(CANARY.lower().encode())


def purge(path: Path, *arguments: str) -> str:
    ended = caseload(path.parent, "purge", "--deleted-before", "1d", "--database", url(path), *arguments)
    assert (ended.returncode, ended.stdout) == (0, f"{MANY} patients, 0 therapists, {MANY} assignments purged\n")
    return ended.stderr


def test_a_purge_without_a_server_leaves_no_trace_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    planted(path)
    assert traces(path) > MANY
    assert purge(path) == ""
    assert traces(path) == 0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_purge_of_one_person_leaves_no_trace_of_that_person(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    store = open_store(Config(database=url(path)), lambda: 1)
    make(store, THERAPIST, "t")
    for number in range(MANY):
        one, name = f"p{number * 7919 % MANY:04}", CANARY if number == MANY // 2 else f"Ann Lee {'x' * (number % 90)}"
        make(
            store, PATIENT, one, display_name="Roe", aliases=f'["{name}"]', identifiers=f'[["urn:x","{name}{number}"]]'
        )
        assign(store, "t", one, focus=name)
        update(store, PATIENT, one, annotations=f'{{"note":"{name}"}}')
        delete(store, PATIENT, one, force=True)
    [(canary,)] = run(store, "SELECT patient_id FROM patient WHERE aliases LIKE :name", {"name": f"%{CANARY}%"})
    store.close()
    command = ("purge", "--patient", canary, "--database", url(path))
    with ServerProcess(url(path)):
        first = caseload(tmp_path, *command)
        assert (first.returncode, first.stdout) == (0, "1 patients, 0 therapists, 1 assignments purged\n")
        assert "may still contain traces of erased records" in first.stderr
        assert traces(path) > 0
        again = caseload(tmp_path, *command, "--vacuum")
        assert (again.returncode, again.stdout) == (0, "0 patients, 0 therapists, 0 assignments purged\n")
        assert again.stderr == ""
        assert traces(path) == 0
    assert traces(path) == 0
    assert path.read_bytes().count(b"Ann Lee") > MANY


def test_a_purge_of_versions_leaves_no_trace_of_what_people_were(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    store = open_store(Config(database=url(path)), lambda: 1)
    for number in range(MANY):
        one = f"p{number * 7919 % MANY:04}"
        make(store, PATIENT, one, display_name=f"{CANARY} {'x' * (number % 90)}")
        update(store, PATIENT, one, display_name="Ann Lee")
    store.close()
    assert traces(path) >= MANY
    ended = caseload(tmp_path, "purge", "--versions-before", "1d", "--database", url(path))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{MANY} versions purged\n", "")
    assert traces(path) == 0
    assert path.read_bytes().count(b"Ann Lee") >= MANY


def test_a_purge_beside_a_server_vacuums_only_with_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    planted(path)
    with ServerProcess(url(path)) as server:
        assert "may still contain traces of erased records" in purge(path)
        assert traces(path) > 0
        again = caseload(tmp_path, "purge", "--deleted-before", "1d", "--vacuum", "--database", url(path))
        assert (again.returncode, again.stderr) == (0, "")
        assert traces(path) == 0
        assert server.stop(signal.SIGTERM)[0] == 0
    assert traces(path) == 0


def test_writes_continue_while_a_vacuum_waits_for_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log can be emptied only after the reader ends; the command retries, and writes continue."""
    path = tmp_path / "caseload.db"
    planted(path)
    store = open_store(Config(database=url(path)), lambda: 1)
    with ThreadPoolExecutor() as pool, ExitStack() as reading:
        transaction = reading.enter_context(store._database.snapshot())
        transaction.run("SELECT head_revision FROM store")
        monkeypatch.setattr(vacuums, "_CHECKPOINT_TIMEOUT_SECONDS", 0.0)
        with pytest.raises(apsw.BusyError):
            vacuums.vacuum(path)
        monkeypatch.setattr(vacuums, "_CHECKPOINT_TIMEOUT_SECONDS", NEVER_SECONDS)
        vacuum = pool.submit(vacuums.vacuum, path)
        for number in range(20):
            make(store, THERAPIST, f"new{number}")
        assert not vacuum.done()
        reading.close()
        vacuum.result(HUNG_SECONDS)
    store.close()


def test_a_file_is_in_use_while_any_process_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    store = open_store(Config(database=url(path)), lambda: 1)
    assert vacuums.is_in_use(path)
    store.close()
    assert not vacuums.is_in_use(path)
