"""When readiness goes and comes back, for a database that answers as written; tests/process has real ones."""

import threading
import time
from collections.abc import Callable

import pytest
from caseload_server.domain import errors
from caseload_server.observability import readiness
from caseload_server.observability.readiness import Readiness

GOOD, BAD = True, False
ASK, FALL = 0.02, 0.6
BAD_FOR_LONG = [BAD] * 40


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_ASK_SECONDS", ASK)
    monkeypatch.setattr(readiness, "_FALL_SECONDS", FALL)
    monkeypatch.setattr(readiness, "_HANG_SECONDS", 2 * FALL, raising=False)


def answering(script: list[bool]) -> Callable[[], None]:
    """Answers in the order of the script, and then as it ends."""

    def check() -> None:
        good = script.pop(0) if len(script) > 1 else script[0]
        if not good:
            raise errors.StoreUnavailable

    return check


def told(*script: bool) -> list[bool]:
    """What is told until some time after the end of the script."""
    said: list[bool] = []
    answers = list(script)
    followed = Readiness(answering(answers), said.append)
    followed.start()
    until = time.monotonic() + 20
    while len(answers) > 1 and time.monotonic() < until:
        time.sleep(ASK)
    time.sleep(FALL / 2)
    followed.stop()
    return said


def test_a_database_that_answers_is_no_news() -> None:
    assert told(*[GOOD] * 20) == []


def test_it_goes_once_and_comes_back_once() -> None:
    assert told(*BAD_FOR_LONG, GOOD) == [False, True]


def test_single_failures_do_not_move_it() -> None:
    assert told(*[BAD, GOOD] * 20, GOOD) == []


def test_single_good_answers_do_not_bring_it_back() -> None:
    assert told(*BAD_FOR_LONG, *[GOOD, BAD] * 20, BAD) == [False]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(ASK)


def wait_for(event: threading.Event) -> None:
    event.wait(60)


def test_a_check_that_hangs_lets_it_go_and_one_that_ends_brings_it_back() -> None:
    said: list[bool] = []
    goes_on = threading.Event()
    followed = Readiness(lambda: wait_for(goes_on), said.append)
    began = time.monotonic()
    followed.start()
    wait_until(lambda: said == [False])
    assert time.monotonic() - began >= 2 * FALL
    goes_on.set()
    wait_until(lambda: said == [False, True])
    followed.stop()
    assert said == [False, True]


def test_a_stop_does_not_wait_for_a_check_that_hangs() -> None:
    ends = threading.Event()
    followed = Readiness(lambda: wait_for(ends), lambda _: None)
    followed.start()
    time.sleep(2 * ASK)
    began = time.monotonic()
    followed.stop()
    assert time.monotonic() - began < FALL
    ends.set()


def test_whatever_the_check_raises_the_next_one_is_made() -> None:
    said: list[bool] = []
    asked: list[float] = []

    def check() -> None:
        asked.append(time.monotonic())
        raise ValueError

    followed = Readiness(check, said.append)
    followed.start()
    time.sleep(2 * FALL)
    followed.stop()
    assert len(asked) > 2
    assert said == [False]
