"""Purges and restores of SQLite files."""

import json
from pathlib import Path

import pytest
from caseload_server.config import Config
from caseload_server.store import PATIENT, THERAPIST
from caseload_server.store.backends.factory import open_store

from tests.process.command_runner import caseload, refusal, url
from tests.store.store_calls import assign, delete, make_pair
from tests.support.api_driver import ApiDriver, number, refused
from tests.support.servers import ServerProcess
from tests.support.watch_reader import first_answer


def test_a_purge_with_an_invalid_time_is_rejected_and_creates_no_file(tmp_path: Path) -> None:
    database = ("purge", "--database", url(tmp_path / "caseload.db"))
    for text in ("-1d", "30", "2020-01-31T00:00:00", "2020-13-01T00:00:00Z"):
        for flag in ("--changes-before", "--versions-before"):
            assert refusal(tmp_path, *database, flag, text).startswith(f"{flag}: "), text
    assert "--changes-before" in refusal(tmp_path, *database)


@pytest.mark.parametrize(
    "what", [("--changes-before", "30d"), ("--versions-before", "30d"), ("--patient", "p1"), ("--therapist", "t1")]
)
def test_a_purge_of_a_missing_file_is_rejected(tmp_path: Path, what: tuple[str, str]) -> None:
    line = refusal(tmp_path, "purge", "--database", url(tmp_path / "caseload.db"), *what)
    assert line.startswith("--database: ")


@pytest.mark.parametrize(
    "others",
    [("--patient", "p1"), ("--deleted-before", "30d"), ("--changes-before", "30d"), ("--versions-before", "30d")],
    ids=lambda arguments: str(arguments[0]),
)
def test_a_purge_of_one_person_takes_no_other_choice(tmp_path: Path, others: tuple[str, str]) -> None:
    command = ("purge", "--database", url(tmp_path / "caseload.db"), "--therapist", "t1", *others)
    assert refusal(tmp_path, *command).endswith(": must not be combined with another choice of what to erase")


@pytest.mark.parametrize("text", ["", "Ann Lee", "-p1", "p1\n", "p" * 64])
def test_a_purge_of_a_malformed_id_is_rejected_and_never_repeated(tmp_path: Path, text: str) -> None:
    """It may be a name. The record of the command must not have it either."""
    log = tmp_path / "access.log"
    for flag in ("--patient", "--therapist"):
        options = ("--database", url(tmp_path / "caseload.db"), "--access-log", str(log))
        ended = caseload(tmp_path, "purge", *options, flag, text)
        assert ended.returncode == 2
        assert ended.stderr == f"caseload: {flag}: must be an id: 1 to 63 of a-z, 0-9 and -, and not begin with -\n"
    assert not log.exists()


def test_only_a_deleted_person_is_purged_and_only_once(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    store = open_store(Config(database=url(path)), lambda: 1)
    make_pair(store)
    assign(store)
    store.close()
    for flag, name in (("--patient", "p"), ("--therapist", "t")):
        purge = ("purge", "--database", url(path), flag, name)
        assert rejected(tmp_path, *purge) == f"{flag}: is not deleted: delete it first"
        assert rejected(tmp_path, *purge[:-1], "missing").startswith(f"{flag}: No {flag[2:]} has this id.")
        store = open_store(Config(database=url(path)), lambda: 1)
        delete(store, PATIENT if name == "p" else THERAPIST, name, force=True)
        store.close()
        erased = "1 patients, 0 therapists, 1 assignments" if name == "p" else "0 patients, 1 therapists, 0 assignments"
        for printed in (erased, "0 patients, 0 therapists, 0 assignments"):
            ended = caseload(tmp_path, *purge)
            assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{printed} purged\n", "")


def test_the_record_of_a_purge_names_the_person(tmp_path: Path) -> None:
    log, path = tmp_path / "access.log", tmp_path / "caseload.db"
    store = open_store(Config(database=url(path)), lambda: 1)
    make_pair(store)
    delete(store, PATIENT, "p")
    store.close()
    assert caseload(tmp_path, "purge", "--database", url(path), "--access-log", str(log), "--patient", "p").stdout
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["arguments"]["patient"] for line in lines] == ["p", "p"]


def rejected(folder: Path, *arguments: str) -> str:
    """Returns the one line of a command that is rejected. Reading a SQLite file may leave files beside it."""
    ended = caseload(folder, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    return ended.stderr.removeprefix("caseload: ").removesuffix("\n")


def test_revisions_from_before_a_restore_are_rejected(tmp_path: Path) -> None:
    database, restored = url(tmp_path / "caseload.db"), url(tmp_path / "restored.db")
    with ServerProcess(database) as server, ApiDriver(server.address) as api:
        api.therapists("t1")
        api.patients("p1", "p2")
        head, log = api.head(), list(api.log())
        for command, where in (("backup", database), ("restore", restored)):
            assert caseload(tmp_path, command, "copy.db", "--database", where).returncode == 0
    with ServerProcess(restored) as server, ApiDriver(server.address) as other:
        for rpc in ("ListChanges", "WatchChanges"):
            assert refused(first_answer, other, rpc, head).reason == "REVISION_FOREIGN"
        assert [list(one.changes) for one in other.log()] == [list(one.changes) for one in log]
        assert number(other.head()) == number(head)
