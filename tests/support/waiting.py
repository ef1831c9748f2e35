"""Tests wait for a condition, never for a fixed time.

The only timeout here ends a hung test. It is no speed limit: even a busy machine does not reach it.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

HUNG_SECONDS: Final = 60.0
"""A test that waits this long has hung. Sockets, processes and calls of tests use the same timeout."""
NEVER_SECONDS: Final = 10_000.0
"""For timeouts of the server that must not expire during a test."""
_LOOK_SECONDS: Final = 0.01


def eventually(look: Callable[[], T], seen: Callable[[], object] = lambda: "") -> T:
    """Calls look() until it returns something true, and returns that.

    Args: seen, returns what to print if the test hangs. Raises AssertionError after HUNG_SECONDS.
    """
    give_up = time.monotonic() + HUNG_SECONDS
    while not (found := look()):
        assert time.monotonic() < give_up, f"still not so after {HUNG_SECONDS:.0f} s: {seen()}"
        time.sleep(_LOOK_SECONDS)
    return found


def join(*threads: threading.Thread) -> None:
    """Waits for the end of each thread. Raises AssertionError after HUNG_SECONDS."""
    for thread in threads:
        thread.join(HUNG_SECONDS)
        assert not thread.is_alive(), f"thread {thread.name} has not ended after {HUNG_SECONDS:.0f} s"


class FakeClock:
    """A clock that stands still until a test moves it; seconds, as time.monotonic()."""

    def __init__(self) -> None:
        self._now = 1000.0

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds
