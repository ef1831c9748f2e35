"""The executors that run calls: a fixed number of threads, a bounded queue, and load shedding when it is full."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from caseload_server.config import Config
from caseload_server.domain import limits
from caseload_server.rpc.grpcio_compat import Args, CallDone, can_shed, shed, when_received

_PROBE_THREADS: Final = 4
"""Threads for unary health checks."""


class _QueuedCall(NamedTuple):
    """A call that waits for a thread."""

    run: Callable[..., Any]
    args: Args
    done: CallDone
    queued_at: float
    """By the executor's clock, in seconds."""


class BoundedExecutor(futures.ThreadPoolExecutor):
    """A fixed number of threads and a short queue. It costs less for each call than ThreadPoolExecutor.

    No call waits longer than the queue timeout. A new call is shed at once when the queue is full, or when its first
    call has waited for half the timeout. A queued call is shed when its timeout ends.
    """

    def __init__(
        self,
        threads: int,
        name: str,
        max_queue_depth: int,
        queue_timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the threads.

        Args: threads, calls that run at once; max_queue_depth, calls that may wait; clock, returns seconds.
        """
        self._clock = clock
        self._max_queue_depth = max_queue_depth
        self._timeout = queue_timeout_seconds
        self._queue: deque[_QueuedCall] = deque()
        # One True for each queued call, which may have been shed in the meantime. False ends a thread.
        self._wakeups: SimpleQueue[bool] = SimpleQueue()
        self._busy = bytearray(threads)
        self._shut_down = threading.Event()
        workers = [
            threading.Thread(target=self._work, args=(n,), name=f"{name}-{n}", daemon=True) for n in range(threads)
        ]
        expiry = threading.Thread(target=self._expire_queued, name=f"{name}-expiry", daemon=True)
        self._all_threads = [*workers, expiry]
        for thread in self._all_threads:
            thread.start()

    def in_flight(self) -> int:
        """Returns the number of calls that run."""
        return sum(self._busy)

    def queue_depth(self) -> int:
        """Returns the number of calls that wait for a thread."""
        return len(self._queue)

    def submit(self, work: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Any:
        """Queues or sheds a call once its message has arrived. Drops exceptions: grpcio's server handles its own."""
        done = CallDone()

        def enqueue(args: Args) -> None:
            call = _QueuedCall(work, args, done, self._clock())
            if self._queue and self._queue_full(call.queued_at) and can_shed(args):
                shed(call.run, call.args, call.done)
            else:
                self._queue.append(call)
                self._wakeups.put(True)

        when_received(args, enqueue)
        return done

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - Executor's
        """Ends every thread once the queue is empty. Does not wait for them."""
        self._shut_down.set()
        for _ in self._busy:
            self._wakeups.put(False)

    def shutdown_and_wait(self, until: float) -> bool:
        """Shuts down, and waits for the threads. Returns whether all have ended.

        Args: until, the time.monotonic() at which to stop waiting.
        """
        self.shutdown()
        for thread in self._all_threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._all_threads)

    def _queue_full(self, now: float) -> bool:
        return len(self._queue) >= self._max_queue_depth or now - self._first_queued_at() > self._timeout / 2

    def _first_queued_at(self) -> float:
        """Returns the time at which the first call was queued, or infinity when the queue is empty."""
        try:
            return self._queue[0].queued_at
        except IndexError:
            return math.inf

    def _work(self, number: int) -> None:
        while self._wakeups.get():
            try:
                call = self._queue.popleft()
            except IndexError:
                continue
            if self._timed_out(call):
                shed(call.run, call.args, call.done)
                continue
            self._busy[number] = True
            with suppress(BaseException):  # grpcio handles its own errors; the thread must survive all others
                call.run(*call.args)
            self._busy[number] = False
            call.done.finish()

    def _timed_out(self, call: _QueuedCall) -> bool:
        return self._clock() - call.queued_at >= self._timeout and can_shed(call.args)

    def _expire_queued(self) -> None:
        """Sheds queued calls whose timeout ends while every thread is busy."""
        wait_seconds = self._timeout
        while not self._shut_down.wait(wait_seconds):
            with suppress(IndexError):
                while self._timed_out(self._queue[0]):
                    self._shed_first()
            wait_seconds = min(self._timeout, max(0.001, self._first_queued_at() + self._timeout - self._clock()))

    def _shed_first(self) -> None:
        call = self._queue.popleft()
        if self._timed_out(call):
            shed(call.run, call.args, call.done)
        else:  # a thread has taken the expired call, and this is the next one
            self._queue.appendleft(call)
            self._wakeups.put(True)


class StreamExecutor(futures.ThreadPoolExecutor):
    """Threads for response streams. grpcio accepts only a ThreadPoolExecutor as the executor of a method."""

    def __init__(self, threads: int, name: str, max_queue_depth: int = 0) -> None:
        """Args: threads, streams that run at once; max_queue_depth, streams that may wait for a thread."""
        super().__init__(threads, name)
        self._max_in_flight = threads + max_queue_depth
        self._lock = threading.Lock()
        self.in_flight = 0
        """The number of streams that run or wait."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Any:
        """Runs a stream in a thread once its request has arrived, or sheds it when the limit is reached."""
        done = CallDone()

        def start(args: Args) -> None:
            if self._reserve(args):
                super(StreamExecutor, self).submit(work, *args).add_done_callback(lambda _: self._release(done))
            else:
                shed(work, args, done)

        when_received(args, start)
        return done

    def _reserve(self, args: Args) -> bool:
        with self._lock:
            if self.in_flight >= self._max_in_flight and can_shed(args):
                return False
            self.in_flight += 1
        return True

    def _release(self, done: CallDone) -> None:
        with self._lock:
            self.in_flight -= 1
        done.finish()


class Executors:
    """One executor for each class of calls, so that no class can use up the threads of another."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts the threads. Args: clock, the clock of the queue timeout, in seconds."""
        queue = config.max_queue_depth, config.queue_timeout_seconds, clock
        self.reads: Final = BoundedExecutor(min(config.read_threads, config.threads), "read", *queue)
        self.writes: Final = BoundedExecutor(config.threads, "write", *queue)
        self.probes: Final = BoundedExecutor(_PROBE_THREADS, "probe", *queue)
        # A few more threads than watches: a watch above the limit is rejected at once and does not wait.
        self.watches: Final = StreamExecutor(config.max_watches + 4, "watch", config.max_queue_depth)
        self.health_watches: Final = StreamExecutor(limits.MAX_HEALTH_WATCHES, "health")
        self.reflection: Final = StreamExecutor(limits.MAX_REFLECTION_STREAMS, "reflection")

    def shutdown_and_wait(self, seconds: float) -> bool:
        """Shuts down the executors of unary calls, which may write. Returns whether all threads ended in time."""
        until = time.monotonic() + seconds
        ended = [executor.shutdown_and_wait(until) for executor in (self.reads, self.writes, self.probes)]
        return all(ended)
