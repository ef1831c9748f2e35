"""The threads that calls run in."""

import math
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

_Work = tuple[Callable[..., Any], tuple[Any, ...], "_Done", float] | None
"""What to call, with what, whom to tell, and since when it waits; None ends a thread."""


class _Since(threading.local):
    at = math.inf


_since = _Since()


def waited_seconds() -> float:
    """How long ago the work of this thread was handed in; negative in threads of other kinds."""
    return time.monotonic() - _since.at


class _Done:
    """All of a Future that grpcio's server wants: a callback once the call has ended."""

    __slots__ = ("_callback", "_first")

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callback = callback
        self._meet("callback")

    def finish(self) -> None:
        self._meet("end")

    def _meet(self, who: str) -> None:
        # The call may end before the callback is there. setdefault is atomic: who comes second finds the other.
        if self._first.setdefault("first", who) != who:
            self._callback(self)


class Threads(futures.Executor):
    """A fixed number of threads on one queue, with less on the path of a call than ThreadPoolExecutor has."""

    def __init__(self, count: int, name: str) -> None:
        """Args: count, the calls that run at once; more wait."""
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        self._count = count
        for number in range(count):
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True).start()

    def submit(self, work: Callable[..., Any], /, *args: Any, **_none: Any) -> Any:
        """Queues work; what it raises is lost, for grpcio's server handles its own."""
        done = _Done()
        self._queue.put((work, args, done, time.monotonic()))
        return done

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - Executor's
        """Lets every thread end once the queue is empty; waits for none."""
        for _ in range(self._count):
            self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, args, done, _since.at = item
            with suppress(BaseException):  # grpcio handles its own; a thread must outlive whatever is left
                work(*args)
            done.finish()
