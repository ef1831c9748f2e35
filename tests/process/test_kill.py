"""A process that is killed at any moment loses nothing it had acknowledged."""

import sys
from pathlib import Path

import pytest

from tests.process.acknowledged import UNASSIGNED, Writers, damage, invented, lost, stored_after_restart
from tests.running import ServerProcess

CASELOAD = (sys.executable, "-m", "service")
NO_COMMITS = (sys.executable, str(Path(__file__).with_name("no_commits.py")))


def write_until_killed(database: Path, name: str, command: tuple[str, ...] = CASELOAD) -> dict[str, int]:
    """Returns the last acknowledged write of each patient."""
    with ServerProcess(database, command=command) as server, Writers(server.address, name) as writers:
        writers.wait_for(patients=10)
        server.kill()
    return writers.acknowledged


def test_no_acknowledged_write_is_lost_by_kill_9(tmp_path: Path) -> None:
    database = tmp_path / "caseload.db"
    acknowledged: dict[str, int] = {}
    for attempt in range(3):
        acknowledged |= write_until_killed(database, f"round-{attempt}")
        found = stored_after_restart(database)
        assert lost(acknowledged, found) == []
        assert invented(acknowledged, found) == []
        assert damage(database) == []


def test_a_server_that_answers_before_it_commits_is_found_out(tmp_path: Path) -> None:
    database = tmp_path / "caseload.db"
    acknowledged = write_until_killed(database, "early", NO_COMMITS)
    assert lost(acknowledged, stored_after_restart(database)) != []


@pytest.mark.parametrize("write", range(1, UNASSIGNED + 1))
def test_one_lost_write_is_found_out(write: int) -> None:
    assert lost({"kept": write, "lost": write}, {"kept": write, "lost": write - 1}) == ["lost"]
    assert lost({"lost": write}, {}) == ["lost"]


def test_a_write_that_nobody_sent_is_found_out() -> None:
    assert invented({}, {"under way": 1, "invented": 2}) == ["invented"]


def test_a_damaged_file_is_found_out(tmp_path: Path) -> None:
    database = tmp_path / "caseload.db"
    write_until_killed(database, "damaged")
    stored_after_restart(database)  # and with it, checkpointed
    content = bytearray(database.read_bytes())
    content[-8192:] = bytes(8192)
    database.write_bytes(content)
    assert damage(database) != []
