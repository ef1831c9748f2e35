"""A process that is killed at any moment loses nothing it had acknowledged."""

from contextlib import ExitStack, suppress

import apsw
import pytest

from tests.locking import holding_the_lock
from tests.process.acknowledged import UNASSIGNED, Writers, invented, lost, stored_after_restart, write_until_killed
from tests.running import ServerProcess
from tests.waiting import eventually


def test_no_acknowledged_write_is_lost_by_kill_9(database_url: str) -> None:
    acknowledged: dict[str, int] = {}
    for attempt in range(2):
        acknowledged |= write_until_killed(database_url, f"round-{attempt}")
        found = stored_after_restart(database_url)
        assert lost(acknowledged, found) == []
        assert invented(acknowledged, found) == []


@pytest.mark.parametrize("write", range(1, UNASSIGNED + 1))
def test_one_lost_write_is_found_out(write: int) -> None:
    assert lost({"kept": write, "lost": write}, {"kept": write, "lost": write - 1}) == ["lost"]
    assert lost({"lost": write}, {}) == ["lost"]


def test_a_write_that_nobody_sent_is_found_out() -> None:
    assert invented({}, {"under way": 1, "invented": 2}) == ["invented"]


def is_held(stack: ExitStack, database_url: str) -> bool:
    """Takes the lock where none of the writers has it just now."""
    with suppress(apsw.BusyError):
        stack.enter_context(holding_the_lock(database_url))
        return True
    return False


def test_writers_that_are_refused_for_a_moment_go_on(database_url: str) -> None:
    """As on a busy machine, where a call may be refused as OVERLOADED."""
    with ServerProcess(database_url) as server, Writers(server.address, "w", threads=2) as writers:
        writers.wait_for(patients=1)
        with ExitStack() as held:
            eventually(lambda: is_held(held, database_url))
            eventually(lambda: writers.refused or writers.refused_for_a_moment >= 2)
        writers.wait_for_more(patients=10)
        server.kill()
    assert writers.refused == set()
