"""The turns of transactions to commit."""

from contextlib import suppress

from caseload_server.store.backends.postgres.commit_turn import CommitTurn, CommitTurns
from psycopg.errors import LockNotAvailable


def time_out(turn: CommitTurn, *, takes_turn: bool) -> None:
    """Fails as a transaction does that waited too long for a lock."""
    with suppress(LockNotAvailable), turn:
        assert not takes_turn or turn.take()
        raise LockNotAvailable


def test_a_turn_is_taken_once_and_ends_with_its_block() -> None:
    turns = CommitTurns()
    with turns.wait() as first, turns.wait() as second:
        assert [first.take(), first.take(), second.take(0.0)] == [True, True, False]
    with turns.wait() as third:
        assert third.take()
    assert not turns.lock.locked()


def test_only_those_that_waited_during_a_lock_timeout_are_told_that_the_counter_is_locked() -> None:
    turns = CommitTurns()
    waiting = turns.wait()
    time_out(turns.wait(), takes_turn=True)
    assert waiting.counter_is_locked
    assert not turns.wait().counter_is_locked


def test_a_lock_timeout_before_the_turn_says_nothing_about_the_counter() -> None:
    turns = CommitTurns()
    waiting = turns.wait()
    time_out(turns.wait(), takes_turn=False)
    assert not waiting.counter_is_locked
