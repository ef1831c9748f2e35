"""The executors that calls run in: threads, a bounded queue, and load shedding beyond its bounds."""

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
"""Health checks answered at once."""


class _QueuedCall(NamedTuple):
    """A call that waits for a thread."""

    run: Callable[..., Any]
    args: Args
    done: CallDone
    queued_at: float
    """By the executor's clock, in seconds."""


class BoundedExecutor(futures.ThreadPoolExecutor):
    """A fixed number of threads and a short queue. Cheaper for each call than ThreadPoolExecutor.

    No call waits longer than the queue timeout. A call that would is shed: at once where the queue is full or its first
    call has waited half the timeout, else when the timeout is over.
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

        Args: threads, calls that run at once; max_queue_depth, calls that may wait; queue_timeout_seconds, on the clock.
        """
        self._clock = clock
        self._max_queue_depth = max_queue_depth
        self._timeout = queue_timeout_seconds
        self._queue: deque[_QueuedCall] = deque()
        # One True for each queued call, some of which may have been shed meanwhile; False ends a thread.
        self._wakeups: SimpleQueue[bool] = SimpleQueue()
        self._busy = bytearray(threads)
        self._shut_down = threading.Event()
        workers = [
            threading.Thread(target=self._work, args=(n,), name=f"{name}-{n}", daemon=True) for n in range(threads)
        ]
        expiry = threading.Thread(target=self._expire_queued, name=f"{name}-expiry", daemon=True)
        self._threads_of_calls = [*workers, expiry]
        for thread in self._threads_of_calls:
            thread.start()

    def in_flight(self) -> int:
        """The number of calls that run."""
        return sum(self._busy)

    def queue_depth(self) -> int:
        """The number of calls that wait for a thread."""
        return len(self._queue)

    def submit(self, work: Callable[..., Any], /, *args: Any, **_none: Any) -> Any:
        """Queues a call. Exceptions of the work are dropped: grpcio's server handles its own."""
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
        """Lets every thread end once the queue is empty, and waits for none."""
        self._shut_down.set()
        for _ in self._busy:
            self._wakeups.put(False)

    def shutdown_and_wait(self, until: float) -> bool:
        """Shuts down, and waits until a time.monotonic() at most. Returns whether every thread has ended."""
        self.shutdown()
        for thread in self._threads_of_calls:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads_of_calls)

    def _queue_full(self, now: float) -> bool:
        return len(self._queue) >= self._max_queue_depth or now - self._first_queued_at() > self._timeout / 2

    def _first_queued_at(self) -> float:
        """The time at which the first call was queued; infinity where none is."""
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
            with suppress(BaseException):  # grpcio handles its own errors; the thread must survive any other
                call.run(*call.args)
            self._busy[number] = False
            call.done.finish()

    def _timed_out(self, call: _QueuedCall) -> bool:
        return self._clock() - call.queued_at >= self._timeout and can_shed(call.args)

    def _expire_queued(self) -> None:
        """Sheds the calls whose timeout ends while every thread is busy."""
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
        else:  # a thread has taken the expired one
            self._queue.appendleft(call)
            self._wakeups.put(True)


class StreamExecutor(futures.ThreadPoolExecutor):
    """Threads for response streams. grpcio accepts only a ThreadPoolExecutor for a single method."""

    def __init__(self, threads: int, name: str, max_queue_depth: int = 0) -> None:
        """Args: threads, streams open at once; max_queue_depth, streams that may wait for one of them to end."""
        super().__init__(threads, name)
        self._max_in_flight = threads + max_queue_depth
        self._lock = threading.Lock()
        self.in_flight = 0
        """Open streams, and those that wait."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **_none: Any) -> Any:
        """Runs a stream in a thread once its request has arrived, or sheds it."""
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
    """An executor for each class of calls, so that no class can take the threads of another."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts the threads. Args: clock, for the queue timeout, in seconds."""
        queue = config.max_queue_depth, config.queue_timeout_seconds, clock
        self.reads: Final = BoundedExecutor(min(config.read_threads, config.threads), "read", *queue)
        self.writes: Final = BoundedExecutor(config.threads, "write", *queue)
        self.probes: Final = BoundedExecutor(_PROBE_THREADS, "probe", *queue)
        # A few more threads than watches, so that a watch above the limit is refused and does not wait.
        self.watches: Final = StreamExecutor(config.max_watches + 4, "watch", config.max_queue_depth)
        self.health_watches: Final = StreamExecutor(limits.MAX_HEALTH_WATCHES, "health")
        self.reflection: Final = StreamExecutor(limits.MAX_REFLECTION_STREAMS, "reflection")

    def shutdown_and_wait(self, seconds: float) -> bool:
        """Shuts down the executors of unary calls, which may write. Returns whether all threads ended in that time."""
        until = time.monotonic() + seconds
        ended = [executor.shutdown_and_wait(until) for executor in (self.reads, self.writes, self.probes)]
        return all(ended)
