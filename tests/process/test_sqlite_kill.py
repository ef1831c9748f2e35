"""kill -9 of a process on a file loses only uncommitted writes and leaves the file intact."""

import sys
from pathlib import Path

from tests.process.acknowledged_writes import lost, stored_after_restart, write_until_killed
from tests.process.command_runner import url
from tests.process.sqlite_integrity import damage

NO_COMMITS = (sys.executable, str(Path(__file__).with_name("sqlite_no_commit_command.py")))


def test_the_test_detects_a_server_that_answers_before_it_commits(tmp_path: Path) -> None:
    database = url(tmp_path / "caseload.db")
    acknowledged = write_until_killed(database, "early", NO_COMMITS)
    assert lost(acknowledged, stored_after_restart(database)) != []


def test_a_kill_leaves_the_file_intact_and_the_test_detects_damage(tmp_path: Path) -> None:
    file = tmp_path / "caseload.db"
    write_until_killed(url(file), "damaged")
    assert damage(file) == []
    stored_after_restart(url(file))  # also checkpoints the file
    assert damage(file) == []
    content = bytearray(file.read_bytes())
    content[-8192:] = bytes(8192)
    file.write_bytes(content)
    assert damage(file) != []
