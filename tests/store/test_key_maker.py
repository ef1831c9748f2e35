"""The thread that makes the words and keys of records."""

import threading
from collections.abc import Iterator

from caseload_server.domain import errors
from caseload_server.store.key_maker import INTERVAL_SECONDS, KeyMaker
from structlog.testing import capture_logs

from tests.support.waiting import HUNG_SECONDS


def test_it_makes_all_keys_and_logs_their_number() -> None:
    with capture_logs() as events:
        for counts in ([2, 1], []):
            assert KeyMaker(lambda made=counts: iter(made)).run_once() == INTERVAL_SECONDS  # type: ignore[misc]
    assert events == [{"event": "keys made", "log_level": "info", "records": 3}]


def test_a_failure_is_logged_once_until_it_succeeds() -> None:
    outcomes = iter([True, True, False, True])

    def catch_up() -> Iterator[int]:
        if next(outcomes):
            raise errors.StoreUnavailable
        return iter([])

    one = KeyMaker(catch_up)
    with capture_logs() as events:
        assert [one.run_once() for _ in range(4)] == [INTERVAL_SECONDS] * 4
    line = {"event": "keys not made", "log_level": "warning", "reason": "StoreUnavailable"}
    assert events == [line, line]


def test_a_stop_ends_it_between_two_transactions() -> None:
    begun, closed = threading.Event(), threading.Event()

    def catch_up() -> Iterator[int]:
        try:
            while True:
                begun.set()
                yield 1
        finally:
            closed.set()

    one = KeyMaker(catch_up)
    one.start()
    assert begun.wait(HUNG_SECONDS)
    one.stop()
    assert closed.wait(HUNG_SECONDS)
