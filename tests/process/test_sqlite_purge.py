"""Purges and restores of SQLite files."""

from pathlib import Path

from tests.process.command_runner import caseload, refusal, url
from tests.support.api_driver import ApiDriver, number, refused
from tests.support.servers import ServerProcess
from tests.support.watch_reader import first_answer


def test_a_purge_with_an_invalid_time_is_rejected_and_creates_no_file(tmp_path: Path) -> None:
    database = ("purge", "--database", url(tmp_path / "caseload.db"))
    for text in ("-1d", "30", "2020-01-31T00:00:00", "2020-13-01T00:00:00Z"):
        assert refusal(tmp_path, *database, "--changes-before", text).startswith("--changes-before: "), text
    assert "--changes-before" in refusal(tmp_path, *database)


def test_a_purge_of_a_missing_file_is_rejected(tmp_path: Path) -> None:
    line = refusal(tmp_path, "purge", "--database", url(tmp_path / "caseload.db"), "--changes-before", "30d")
    assert line.startswith("--database: ")


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
