"""When those who were turned away may come again, by a clock that stands still."""

import inspect

import pytest
from caseload.client import connect

from service.interceptors.retries import LEAST_SECONDS, MOST_SECONDS, SPACING_SECONDS, Retries
from tests.waiting import FakeClock


@pytest.mark.parametrize("herd", [1, 100, 5000])
def test_those_who_are_turned_away_together_do_not_come_again_together(herd: int) -> None:
    given = Retries(FakeClock())
    times = sorted(given.after_seconds() for _ in range(herd))
    assert times[0] >= LEAST_SECONDS
    assert times[-1] <= MOST_SECONDS
    in_any_second = max(sum(at <= other < at + 1 for other in times) for at in times[:: max(1, herd // 50)])
    rounds = herd * SPACING_SECONDS / (MOST_SECONDS - LEAST_SECONDS) + 1
    assert in_any_second <= rounds / SPACING_SECONDS + 1


def test_two_retries_lie_within_the_deadline_of_a_call() -> None:
    """Even where a flood of others was given all the times there are: none is sent away for longer."""
    deadline = inspect.signature(connect).parameters["timeout"].default
    assert deadline > 2 * MOST_SECONDS
