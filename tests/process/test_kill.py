"""A killed process loses no acknowledged write."""

from contextlib import ExitStack, suppress

import apsw
import pytest

from tests.process.acknowledged_writes import (
    UNASSIGNED,
    Writers,
    invented,
    lost,
    stored_after_restart,
    write_until_killed,
)
from tests.support.servers import ServerProcess
from tests.support.waiting import eventually
from tests.support.write_lock import holding_the_lock


def test_no_acknowledged_write_is_lost_by_kill_9(database_url: str) -> None:
    acknowledged: dict[str, int] = {}
    for attempt in range(2):
        acknowledged |= write_until_killed(database_url, f"round-{attempt}")
        found = stored_after_restart(database_url)
        assert lost(acknowledged, found) == []
        assert invented(acknowledged, found) == []


@pytest.mark.parametrize("write", range(1, UNASSIGNED + 1))
def test_the_test_detects_one_lost_write(write: int) -> None:
    assert lost({"kept": write, "lost": write}, {"kept": write, "lost": write - 1}) == ["lost"]
    assert lost({"lost": write}, {}) == ["lost"]


def test_the_test_detects_an_invented_write() -> None:
    assert invented({}, {"under way": 1, "invented": 2}) == ["invented"]


def is_held(stack: ExitStack, database_url: str) -> bool:
    """Takes the write lock, unless a writer has it at this moment."""
    with suppress(apsw.BusyError):
        stack.enter_context(holding_the_lock(database_url))
        return True
    return False


def test_writers_continue_after_a_temporary_rejection(database_url: str) -> None:
    """Simulates a busy machine, which may reject a call as OVERLOADED."""
    with ServerProcess(database_url) as server, Writers(server.address, "w", threads=2) as writers:
        writers.wait_for(patients=1)
        with ExitStack() as held:
            eventually(lambda: is_held(held, database_url))
            eventually(lambda: writers.refused or writers.refused_for_a_moment >= 2)
        writers.wait_for_more(patients=10)
        server.kill()
    assert writers.refused == set()
