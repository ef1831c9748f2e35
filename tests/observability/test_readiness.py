"""When readiness is lost and regained, with a scripted database; tests/process uses real ones."""

import threading
from collections.abc import Callable, Iterator

import pytest
from caseload_server.domain import errors
from caseload_server.observability.readiness import (
    CHECK_INTERVAL_SECONDS,
    FAILURE_TIMEOUT_SECONDS,
    HANG_TIMEOUT_SECONDS,
    RECOVERY_SUCCESSES,
    Readiness,
)

from tests.support.waiting import HUNG_SECONDS, FakeClock, eventually

GOOD, BAD = True, False
TO_FALL = round(FAILURE_TIMEOUT_SECONDS / CHECK_INTERVAL_SECONDS)
TO_HANG = round(HANG_TIMEOUT_SECONDS / CHECK_INTERVAL_SECONDS)
"""Number of checks until a hung check loses readiness."""
SOON = 0.001
"""Seconds between checks in tests with real threads."""


def scripted_check(script: list[bool]) -> Callable[[], None]:
    """Answers in script order, then repeats the last answer."""

    def check() -> None:
        good = script.pop(0) if len(script) > 1 else script[0]
        if not good:
            raise errors.StoreUnavailable

    return check


def reported(*script: bool) -> list[tuple[int, bool]]:
    """The reports, each with the number of the preceding check, at one check per second."""
    clock, said = FakeClock(), list[tuple[int, bool]]()
    began = clock()

    def report(ready: bool) -> None:  # noqa: FBT001 - the signature of a Readiness callback
        said.append((round((clock() - began) / CHECK_INTERVAL_SECONDS), ready))

    readiness = Readiness(scripted_check(list(script)), report, clock)
    for _ in script:
        clock.advance(CHECK_INTERVAL_SECONDS)
        readiness.check_store()
        readiness.update()
    return said


def test_a_healthy_database_changes_nothing() -> None:
    assert reported(*[GOOD] * 20) == []


def test_readiness_is_lost_after_3_s_of_failures_and_regained_after_2_successes() -> None:
    lost, regained = TO_FALL, 40 + RECOVERY_SUCCESSES
    assert reported(*[BAD] * 40, *[GOOD] * 20) == [(lost, False), (regained, True)]


def test_failures_for_less_than_3_s_keep_readiness() -> None:
    almost = [BAD] * (TO_FALL - 1)
    assert reported(*almost, GOOD, *almost, GOOD) == []


def test_single_failures_keep_readiness() -> None:
    assert reported(*[BAD, GOOD] * 20) == []


def test_single_successes_do_not_restore_readiness() -> None:
    assert reported(*[BAD] * 10, *[GOOD, BAD] * 20) == [(TO_FALL, False)]


def test_a_success_before_the_loss_does_not_count_towards_recovery() -> None:
    clock, said = FakeClock(), list[bool]()
    readiness = Readiness(lambda: None, said.append, clock)
    for _ in range(RECOVERY_SUCCESSES):
        readiness.check_store()
    clock.advance(HANG_TIMEOUT_SECONDS)
    readiness.update()
    readiness.check_store()
    readiness.update()
    assert said == [False]


def test_readiness_is_lost_after_6_s_without_an_answer() -> None:
    clock, said = FakeClock(), list[bool]()
    readiness = Readiness(lambda: None, said.append, clock)
    for _ in range(TO_HANG - 1):
        clock.advance(CHECK_INTERVAL_SECONDS)
        readiness.update()
    assert said == []
    clock.advance(CHECK_INTERVAL_SECONDS)
    readiness.update()
    assert said == [False]


class Hanging:
    """A check that hangs until the test releases it."""

    def __init__(self) -> None:
        self.begun, self.goes_on, self.ended = threading.Event(), threading.Event(), threading.Event()

    def check(self) -> None:
        self.begun.set()
        self.goes_on.wait(HUNG_SECONDS)
        self.ended.set()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    one = Hanging()
    yield one
    one.goes_on.set()


def test_a_hung_check_loses_readiness_and_a_completed_one_restores_it(hanging: Hanging) -> None:
    clock, said = FakeClock(), list[bool]()
    readiness = Readiness(hanging.check, said.append, clock, SOON)
    readiness.start()
    assert hanging.begun.wait(HUNG_SECONDS)
    clock.advance(HANG_TIMEOUT_SECONDS)
    eventually(lambda: said == [False])
    assert not hanging.ended.is_set()
    hanging.goes_on.set()
    eventually(lambda: said == [False, True])
    readiness.stop()
    assert said == [False, True]


def test_a_stop_does_not_wait_for_a_hung_check(hanging: Hanging) -> None:
    readiness = Readiness(hanging.check, lambda _: None, check_interval_seconds=SOON)
    readiness.start()
    assert hanging.begun.wait(HUNG_SECONDS)
    readiness.stop()
    assert not hanging.ended.is_set()


def test_after_a_stop_nothing_is_reported() -> None:
    clock, said = FakeClock(), list[bool]()
    readiness = Readiness(scripted_check([BAD]), said.append, clock)
    readiness.stop()
    readiness.check_store()
    clock.advance(HANG_TIMEOUT_SECONDS)
    readiness.update()
    assert said == []


def test_a_check_runs_again_after_any_exception() -> None:
    said: list[bool] = []
    clock = FakeClock()
    asked: list[None] = []

    def check() -> None:
        asked.append(None)
        raise ValueError

    readiness = Readiness(check, said.append, clock, SOON)
    readiness.start()
    eventually(lambda: len(asked) > 2)
    clock.advance(FAILURE_TIMEOUT_SECONDS)
    eventually(lambda: said == [False])
    readiness.stop()
