"""The threads that calls run in."""

import math
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from inspect import signature
from queue import SimpleQueue
from typing import Any, Final

from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

_POOL_PARAMETERS: Final = [
    *("rpc_event", "state", "behavior", "argument_thunk", "request_deserializer", "response_serializer")
]
_PARAMETERS: Final = {
    "_is_rpc_state_active": ["state"],
    "_receive_message": ["state", "call", "request_deserializer"],
    "_unary_response_in_pool": _POOL_PARAMETERS,
    "_stream_response_in_pool": _POOL_PARAMETERS,
}


def _is_known() -> bool:
    """Whether grpcio is as it is known here."""
    private = vars(_server)
    return "_RECEIVE_MESSAGE_TOKEN" in private and all(
        name in private and list(signature(private[name]).parameters) == parameters
        for name, parameters in _PARAMETERS.items()
    )


_KNOWN: Final = _is_known()

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


def _when_received(args: tuple[Any, ...], go: Callable[[tuple[Any, ...]], Any]) -> None:
    """Goes on once the call's message is there, or its end.

    By itself grpcio takes a thread and lets that wait for the message: who never sends one keeps the thread, and a few
    dozen such calls stop a server. It also costs each call two switches of threads. So this receives as grpcio does, on
    its names; where another grpcio has others, the work goes on in its own way.
    """
    in_pool = (_server._unary_response_in_pool, _server._stream_response_in_pool)
    # A stream of requests has another thunk: it is read as it comes.
    if not (_KNOWN and args and args[0] in in_pool and args[4].__name__ == "unary_request"):
        go(args)
        return
    run, event, state, behavior, _, parse, write = args
    received = _server._receive_message(state, event.call, parse)

    def arrived(batch: Any) -> Any:
        outcome = received(batch)
        request, state.request = state.request, None

        def thunk() -> Any:
            return request if _server._is_rpc_state_active(state) else None  # who turned away gets nothing done

        go(args if request is None else (run, event, state, behavior, thunk, parse, write))
        return outcome

    with state.condition:
        event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), arrived)
        state.due.add(_server._RECEIVE_MESSAGE_TOKEN)


class StreamThreads(futures.ThreadPoolExecutor):
    """Threads for streams that answer one message; grpcio takes no other kind of executor for a single method."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **_none: Any) -> Any:
        """Takes a thread once the message is there."""
        done = _Done()

        def take(args: tuple[Any, ...]) -> None:
            super(StreamThreads, self).submit(work, *args).add_done_callback(lambda _: done.finish())

        _when_received(args, take)
        return done


class Threads(futures.Executor):
    """A fixed number of threads on one queue, with less on the path of a call than ThreadPoolExecutor has."""

    def __init__(self, count: int, name: str) -> None:
        """Args: count, the calls that run at once; more wait."""
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[..., Any], /, *args: Any, **_none: Any) -> Any:
        """Queues work; what it raises is lost, for grpcio's server handles its own."""
        done = _Done()

        def queue(args: tuple[Any, ...]) -> None:
            self._queue.put((work, args, done, time.monotonic()))

        _when_received(args, queue)
        return done

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - Executor's
        """Lets every thread end once the queue is empty; waits for none."""
        for _ in self._threads:
            self._queue.put(None)

    def end(self, seconds: float) -> bool:
        """Shuts down, and waits so long at most: whether every thread has ended."""
        self.shutdown()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, args, done, _since.at = item
            with suppress(BaseException):  # grpcio handles its own; a thread must outlive whatever is left
                work(*args)
            done.finish()
