"""Retry delays of shed calls, with a fake clock."""

import inspect

import pytest
from caseload.client import connect
from caseload_server.rpc.retry_delays import MAX_DELAY_SECONDS, MIN_DELAY_SECONDS, SPACING_SECONDS, RetryDelays

from tests.support.waiting import FakeClock


@pytest.mark.parametrize("herd", [1, 100, 5000])
def test_calls_shed_together_get_different_retry_delays(herd: int) -> None:
    given = RetryDelays(FakeClock())
    times = sorted(given.next_seconds() for _ in range(herd))
    assert times[0] >= MIN_DELAY_SECONDS
    assert times[-1] <= MAX_DELAY_SECONDS
    in_any_second = max(sum(at <= other < at + 1 for other in times) for at in times[:: max(1, herd // 50)])
    rounds = herd * SPACING_SECONDS / (MAX_DELAY_SECONDS - MIN_DELAY_SECONDS) + 1
    assert in_any_second <= rounds / SPACING_SECONDS + 1


def test_two_retries_fit_into_the_deadline_of_a_call() -> None:
    """The delay has a maximum, even after a flood of calls has received delays."""
    deadline = inspect.signature(connect).parameters["timeout"].default
    assert deadline > 2 * MAX_DELAY_SECONDS
