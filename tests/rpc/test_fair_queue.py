"""Callers take turns for the threads of an executor, and none has more than its share of threads and queue."""

from typing import Any

from caseload_server.domain import limits
from caseload_server.rpc.fair_queue import FairQueue

TIMEOUT = 1.0


class Call:
    """The part of a call that the queue looks at."""

    def __init__(self, caller: str, queued_at: float = 0.0, message_bytes: int = 0) -> None:
        self.caller = caller
        self.queued_at = queued_at
        self.message_bytes = message_bytes


def call(caller: str, queued_at: float = 0.0, message_bytes: int = 0) -> Any:
    return Call(caller, queued_at, message_bytes)


def queue(threads: int = 2, max_depth: int = 100, share: float = 1.0) -> FairQueue:
    return FairQueue(threads, max_depth, TIMEOUT, share)


def test_callers_take_turns_however_many_calls_each_has_queued() -> None:
    waiting, running = queue(threads=1), call("a")
    assert waiting.start(running)
    assert all(waiting.add(call(name)) for name in "aaaabbc")
    served = []
    while (following := waiting.replace(running)) is not None:
        served.append(following.caller)
        running = following
    assert "".join(served) == "abcabaa"


def test_the_calls_of_one_caller_are_served_in_the_order_of_their_arrival() -> None:
    waiting, first = queue(threads=1), call("a")
    assert waiting.start(first)
    calls = [call("a", number / 10) for number in range(4)]
    assert all(map(waiting.add, calls))
    served = [waiting.replace(one) for one in [first, *calls[:3]]]
    assert served == calls


def test_a_caller_runs_no_more_than_its_share_of_the_threads() -> None:
    waiting = queue(threads=4, share=0.5)
    assert [waiting.start(call("a")) for _ in range(3)] == [True, True, False]
    assert [waiting.start(call("b")) for _ in range(3)] == [True, True, False]


def test_a_queued_call_of_a_caller_at_its_share_does_not_hold_up_the_next_caller() -> None:
    waiting, other, mine = queue(threads=4, share=0.5), call("b"), call("a")
    for running in (mine, call("a"), other):
        assert waiting.start(running)
    held = call("a")
    assert waiting.add(held)
    assert waiting.replace(other) is None
    assert waiting.replace(mine) is held


def test_a_caller_queues_no_more_than_its_share_of_the_queue() -> None:
    waiting = queue(max_depth=4, share=0.5)
    assert [waiting.add(call("a")) for _ in range(3)] == [True, True, False]
    assert [waiting.add(call("b")) for _ in range(3)] == [True, True, False]
    assert not waiting.add(call("c"))
    assert waiting.depth == 4


def test_messages_wait_only_up_to_a_size_of_all_together_and_of_a_caller_its_share() -> None:
    waiting, quarter = queue(threads=1, share=0.5), limits.MAX_QUEUED_BYTES // 4
    running = call("a")
    assert waiting.start(running)
    assert [waiting.add(call("a", 0.0, quarter)) for _ in range(3)] == [True, True, False]
    assert waiting.add(call("b", 0.0, 2 * quarter))
    assert not waiting.add(call("c", 0.0, 1))
    assert waiting.add(call("c"))
    assert waiting.replace(running)
    assert waiting.add(call("c", 0.0, quarter))
    assert not waiting.add(call("c", 0.0, 1))


def test_a_caller_queues_nothing_more_while_its_first_call_has_waited_for_half_the_timeout() -> None:
    waiting = queue()
    assert waiting.add(call("a", 0.0))
    assert waiting.add(call("a", TIMEOUT / 2))
    assert not waiting.add(call("a", TIMEOUT / 2 + 0.01))
    assert waiting.add(call("b", TIMEOUT / 2 + 0.01))


def test_calls_that_are_too_late_are_taken_out() -> None:
    waiting, old, new = queue(), call("a", 0.0), call("a", 0.4)
    for one in (old, new, call("b", 0.3)):
        assert waiting.add(one)
    assert list(waiting.take_expired(lambda one: one.queued_at < 0.3)) == [old]
    assert waiting.depth == 2
    assert len(list(waiting.take_expired(lambda _: True))) == 2
    assert waiting.depth == 0
