"""The thread that ends expired assignments."""

import threading
from collections.abc import Iterator

import pytest
from caseload_server.domain import errors
from caseload_server.store.expiry_sweeper import INTERVAL_SECONDS, ExpirySweeper
from structlog.testing import capture_logs

from tests.store.conftest import Clock
from tests.support.waiting import eventually

MINUTE_US = 60_000_000


def sweeper(clock: Clock, answers: Iterator[int | Exception | None]) -> ExpirySweeper:
    def end_expired() -> int | None:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ExpirySweeper(end_expired, clock)


@pytest.mark.parametrize(
    ("until_next_us", "seconds"),
    [(None, INTERVAL_SECONDS), (MINUTE_US, INTERVAL_SECONDS), (1_500_000, 1.5), (10, 0.1), (-MINUTE_US, 0.1)],
)
def test_the_next_sweep_is_at_the_next_planned_end_or_soon(
    clock: Clock, until_next_us: int | None, seconds: float
) -> None:
    next_us = None if until_next_us is None else clock() + until_next_us
    assert sweeper(clock, iter([next_us])).run_once() == seconds
    assert INTERVAL_SECONDS < 5  # what the contract promises


def test_the_lag_is_the_time_since_the_oldest_planned_end_that_has_passed(clock: Clock) -> None:
    one = sweeper(clock, iter([clock() + MINUTE_US, errors.StoreUnavailable(), None]))
    assert one.lag_seconds() == 0
    one.run_once()
    assert one.lag_seconds() == 0
    clock.advance(90)
    assert one.lag_seconds() == 30
    one.run_once()  # fails
    assert one.lag_seconds() == 30
    one.run_once()
    assert one.lag_seconds() == 0


def test_a_failure_is_logged_once_until_a_sweep_succeeds(clock: Clock) -> None:
    failure = errors.StoreUnavailable()
    one = sweeper(clock, iter([failure, failure, None, failure]))
    with capture_logs() as events:
        assert [one.run_once() for _ in range(4)] == [INTERVAL_SECONDS] * 4
    line = {"event": "expired assignments not ended", "log_level": "warning", "reason": "StoreUnavailable"}
    assert events == [line, line]


def test_the_thread_sweeps_until_the_stop(clock: Clock) -> None:
    sweeps = threading.Semaphore(0)

    def end_expired() -> int:
        sweeps.release()
        return clock()

    one = ExpirySweeper(end_expired, clock)
    one.start()
    for _ in range(3):
        assert sweeps.acquire(timeout=60)
    one.stop()
    eventually(lambda: not one._thread.is_alive())
