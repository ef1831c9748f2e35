"""How tests wait: until something is so, and never by the clock.

The one bound here ends a test that hangs. It says nothing about speed, so no busy machine comes near it.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

HUNG_SECONDS: Final = 60.0
"""After this a test that waits has hung. It is also the timeout of sockets, processes and calls in tests."""
NEVER_SECONDS: Final = 10_000.0
"""For settings of the server that must not expire during a test."""
_LOOK_SECONDS: Final = 0.01


def eventually(look: Callable[[], T], seen: Callable[[], object] = lambda: "") -> T:
    """Calls look() until it returns something true, and returns that.

    Args: seen, what to show of a test that hangs. Raises AssertionError after HUNG_SECONDS.
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
