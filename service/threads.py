"""The threads that calls run in, how many wait for one and how long, and the turning away of those beyond that."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from inspect import signature
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

import grpc
import structlog
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


def warn_where_unknown() -> None:
    """Says once that calls are not turned away, nor kept from waiting for a message, with the grpcio that is here."""
    if not _KNOWN:
        _log.warning("calls are not turned away", grpcio=grpc.__version__)


_log = structlog.get_logger()


class _Work(NamedTuple):
    """A call that waits: what to call, with what, whom to tell, and since when it waits."""

    run: Callable[..., Any]
    args: tuple[Any, ...]
    done: "_Done"
    since: float


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


def _is_of_pool(args: tuple[Any, ...]) -> bool:
    in_pool = (_server._unary_response_in_pool, _server._stream_response_in_pool)
    return _KNOWN and bool(args) and args[0] in in_pool


def _when_received(args: tuple[Any, ...], go: Callable[[tuple[Any, ...]], Any]) -> None:
    """Goes on once the call's message is there, or its end.

    By itself grpcio takes a thread and lets that wait for the message: who never sends one keeps the thread, and a few
    dozen such calls stop a server. It also costs each call two switches of threads. So this receives as grpcio does, on
    its names; where another grpcio has others, the work goes on in its own way.
    """
    # A stream of requests has another thunk: it is read as it comes.
    if not (_is_of_pool(args) and args[4].__name__ == "unary_request"):
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


def _can_be_turned_away(args: tuple[Any, ...]) -> bool:
    """Whether the call is one of a guarded method, in a grpcio as it is known here."""
    return _is_of_pool(args) and hasattr(args[3], "turn_away")


def _turn_away(run: Callable[..., Any], args: tuple[Any, ...], done: _Done) -> None:
    """Refuses a call, or answers it, in the thread that is here: it takes none that calls run in."""
    in_pool, event, state, behavior, thunk, *rest = args
    if thunk.__name__ == "unary_request":  # of a call without a message: it would wait for what this thread brings

        def thunk() -> Any:
            return b"" if _server._is_rpc_state_active(state) else None

    with suppress(BaseException):  # the thread must outlive whatever is left
        run(in_pool, event, state, behavior.turn_away, thunk, *rest)
    done.finish()


class StreamThreads(futures.ThreadPoolExecutor):
    """Threads for streams that answer one message; grpcio takes no other kind of executor for a single method."""

    def __init__(self, count: int, name: str, most_waiting: int = 0) -> None:
        """Args: count, streams open at once; most_waiting, those that may wait for one to end."""
        super().__init__(count, name)
        self._most = count + most_waiting
        self._lock = threading.Lock()
        self.in_flight = 0
        """Open streams, and those that wait."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **_none: Any) -> Any:
        """Takes a thread once the message is there."""
        done = _Done()

        def take(args: tuple[Any, ...]) -> None:
            if self._takes_place(args):
                super(StreamThreads, self).submit(work, *args).add_done_callback(lambda _: self._end(done))
            else:
                _turn_away(work, args, done)

        _when_received(args, take)
        return done

    def _takes_place(self, args: tuple[Any, ...]) -> bool:
        with self._lock:
            if self.in_flight >= self._most and _can_be_turned_away(args):
                return False
            self.in_flight += 1
        return True

    def _end(self, done: _Done) -> None:
        with self._lock:
            self.in_flight -= 1
        done.finish()


class Threads(futures.ThreadPoolExecutor):
    """A fixed number of threads on one short queue, with less on the path of a call than ThreadPoolExecutor has.

    No call waits longer than the bound. Who would is turned away: at once where the queue is full or its first has
    waited half as long already, else when the time is up.
    """

    def __init__(
        self,
        count: int,
        name: str,
        most_waiting: int,
        longest_wait: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: count, the calls that run at once; most_waiting, those that may wait; longest_wait, in seconds of the
        clock."""
        self._most = most_waiting
        self._longest = longest_wait
        self._clock = clock
        self._waiting: deque[_Work] = deque()
        # One True for each call that waits, of which some were turned away meanwhile; False ends a thread.
        self._calls: SimpleQueue[bool] = SimpleQueue()
        self._busy = bytearray(count)
        self._ended = threading.Event()
        runs = [threading.Thread(target=self._run, args=(at,), name=f"{name}-{at}", daemon=True) for at in range(count)]
        self._all = [*runs, threading.Thread(target=self._hold_bound, name=f"{name}-bound", daemon=True)]
        for thread in self._all:
            thread.start()

    def in_flight(self) -> int:
        """How many calls run."""
        return sum(self._busy)

    def waiting(self) -> int:
        """How many calls wait for a thread."""
        return len(self._waiting)

    def submit(self, work: Callable[..., Any], /, *args: Any, **_none: Any) -> Any:
        """Queues work; what it raises is lost, for grpcio's server handles its own."""
        done = _Done()

        def enter(args: tuple[Any, ...]) -> None:
            call = _Work(work, args, done, self._clock())
            if self._waiting and self._is_full(call.since) and _can_be_turned_away(args):
                _turn_away(call.run, call.args, call.done)
            else:
                self._waiting.append(call)
                self._calls.put(True)

        _when_received(args, enter)
        return done

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - Executor's
        """Lets every thread end once the queue is empty; waits for none."""
        self._ended.set()
        for _ in self._busy:
            self._calls.put(False)

    def end(self, until: float) -> bool:
        """Shuts down, and waits until then, a time.monotonic(), at most: whether every thread has ended."""
        self.shutdown()
        for thread in self._all:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._all)

    def _is_full(self, now: float) -> bool:
        return len(self._waiting) >= self._most or now - self._first_since() > self._longest / 2

    def _first_since(self) -> float:
        """Since when the first one waits; infinity where none does."""
        try:
            return self._waiting[0].since
        except IndexError:
            return math.inf

    def _run(self, at: int) -> None:
        while self._calls.get():
            try:
                call = self._waiting.popleft()
            except IndexError:
                continue
            if self._is_late(call):
                _turn_away(call.run, call.args, call.done)
                continue
            self._busy[at] = True
            with suppress(BaseException):  # grpcio handles its own; a thread must outlive whatever is left
                call.run(*call.args)
            self._busy[at] = False
            call.done.finish()

    def _is_late(self, call: _Work) -> bool:
        return self._clock() - call.since >= self._longest and _can_be_turned_away(call.args)

    def _hold_bound(self) -> None:
        """Turns away those whose time is up while no thread looks at them, because all are held by calls."""
        left = self._longest
        while not self._ended.wait(left):
            with suppress(IndexError):
                while self._is_late(self._waiting[0]):
                    self._turn_first_away()
            left = min(self._longest, max(0.001, self._first_since() + self._longest - self._clock()))

    def _turn_first_away(self) -> None:
        call = self._waiting.popleft()
        if self._is_late(call):
            _turn_away(call.run, call.args, call.done)
        else:  # a thread has taken the late one
            self._waiting.appendleft(call)
            self._calls.put(True)
