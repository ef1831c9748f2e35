"""The executors that run calls: a fixed number of threads, a bounded queue, and load shedding when it is full."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from queue import SimpleQueue
from typing import Any, Final

from caseload_server.config import Config
from caseload_server.domain import limits
from caseload_server.rpc.admission import Admission
from caseload_server.rpc.fair_queue import FairQueue
from caseload_server.rpc.grpcio_compat import IncomingCall

_LOOK_SECONDS: Final = 0.05
_IDLE_LOOK_SECONDS: Final = 0.25
"""Time between two looks for queued calls that are too late, with calls in the queue and without, in seconds."""
_PROBE_THREADS: Final = 4
"""Threads for unary health checks."""


class FairExecutor(futures.ThreadPoolExecutor):
    """A fixed number of threads and a short queue, which callers share fairly. It is cheaper than ThreadPoolExecutor.

    No call waits longer than the queue timeout. A new call is shed at once when the queue or its caller's share of it
    is full, or when the oldest queued call of its caller has waited for half the timeout. A queued call is shed when
    its timeout ends, or when it is not expected to end before its deadline.
    """

    def __init__(
        self, admission: Admission, name: str, queue: FairQueue, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Starts the threads. Args: queue, holds the waiting calls; clock, returns seconds."""
        self._admission = admission
        self._clock = clock
        self._lock = threading.Lock()
        self._queue = queue
        self._idle = queue.threads
        self._started: SimpleQueue[IncomingCall | None] = SimpleQueue()  # calls for idle threads; None ends a thread
        self._shut_down = threading.Event()
        workers = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(queue.threads)]
        expiry = threading.Thread(target=self._expire_queued, name=f"{name}-expiry", daemon=True)
        self._all_threads = [*workers, expiry]
        for thread in self._all_threads:
            thread.start()

    def in_flight(self) -> int:
        """Returns the number of running calls."""
        return self._queue.threads - self._idle

    def queue_depth(self) -> int:
        """Returns the number of queued calls."""
        return self._queue.depth

    def submit(self, _work: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Any:
        """Runs, queues or sheds a call once it is admitted and its message has arrived."""
        self._admission.admit(IncomingCall(args), self._enqueue)

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - Executor's
        """Lets every thread end once the queue is empty. Does not wait for the threads."""
        self._shut_down.set()
        for _ in range(self._queue.threads):
            self._started.put(None)

    def shutdown_and_wait(self, until: float) -> bool:
        """Shuts down, and waits for the threads. Returns whether all have ended.

        Args: until, the time.monotonic() at which to stop waiting.
        """
        self.shutdown()
        for thread in self._all_threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._all_threads)

    def _enqueue(self, call: IncomingCall) -> None:
        call.queued_at = self._clock()
        with self._lock:
            starts = self._idle > 0 and self._queue.start(call)
            if starts:
                self._idle -= 1
            queued = starts or self._queue.add(call)
        if starts:
            self._started.put(call)
        elif not queued:
            self._admission.shed(call)

    def _work(self) -> None:
        while (call := self._started.get()) is not None:
            self._run(call)
            while (call := self._next_after(call)) is not None:
                if self._is_too_late(call):
                    self._admission.shed(call)
                else:
                    self._run(call)

    def _run(self, call: IncomingCall) -> None:
        started = self._clock()
        call.run()
        call.handler.method.durations[call.caller].add(self._clock() - started)
        self._admission.answered(call)

    def _next_after(self, call: IncomingCall) -> IncomingCall | None:
        with self._lock:
            following = self._queue.replace(call)
            if following is None:
                self._idle += 1
        return following

    def _is_too_late(self, call: IncomingCall) -> bool:
        """Returns whether the call has waited too long, or would end so late that its caller may have given up.

        After a long wait the estimate is less certain, and the response must still reach the caller.
        """
        waited = self._clock() - call.queued_at
        expected: float = call.handler.method.durations[call.caller].expected()
        return waited >= self._queue.timeout_seconds or call.seconds_left() < expected + waited / 2

    def _expire_queued(self) -> None:
        """Sheds queued calls that become too late while every thread is busy."""
        while not self._shut_down.wait(_LOOK_SECONDS if self._queue.depth else _IDLE_LOOK_SECONDS):
            with self._lock:
                expired = list(self._queue.take_expired(self._is_too_late))
            for call in expired:
                self._admission.shed(call)


class StreamExecutor(futures.ThreadPoolExecutor):
    """Threads for response streams. grpcio accepts only a ThreadPoolExecutor as the executor of a method."""

    def __init__(
        self, admission: Admission, threads: int, name: str, max_queue_depth: int = 0, share: float = 1
    ) -> None:
        """Args: threads, streams that run at once; max_queue_depth, streams that may wait for a thread.

        share, the largest part of the two that one caller may have, up to 1.
        """
        super().__init__(threads, name)
        self._admission = admission
        self._max_in_flight = threads + max_queue_depth
        self._max_of_caller = math.ceil(self._max_in_flight * share)
        self._lock = threading.Lock()
        self._callers: Counter[str] = Counter()
        self.in_flight = 0
        """The number of streams that run or wait."""

    def submit(self, _work: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Any:
        """Runs a stream in a thread once it is admitted and its request has arrived, or sheds it above the limit."""
        self._admission.admit(IncomingCall(args), self._run)

    def _run(self, call: IncomingCall) -> None:
        if self._reserve(call.caller):
            super().submit(call.run).add_done_callback(lambda _: self._release(call))
        else:
            self._admission.shed(call)

    def _reserve(self, caller: str) -> bool:
        with self._lock:
            if self.in_flight >= self._max_in_flight or self._callers[caller] >= self._max_of_caller:
                return False
            self.in_flight += 1
            self._callers[caller] += 1
        return True

    def _release(self, call: IncomingCall) -> None:
        self._admission.answered(call)
        with self._lock:
            self.in_flight -= 1
            self._callers[call.caller] -= 1


class Executors:
    """One executor for each class of calls, so that no class can use up the threads of another."""

    def __init__(self, config: Config, admission: Admission, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts the threads. Args: clock, the clock of the queue timeout, in seconds."""
        self._admission = admission
        self._config = config
        self._clock = clock
        share = config.caller_share()
        threads = min(config.read_threads, config.threads)
        self.reads: Final = self._fair("read", threads, share)
        self.scans: Final = self._fair("scan", math.ceil(threads / 2), share)
        self.writes: Final = self._fair("write", config.threads, share)
        self.bulk_writes: Final = self._fair("bulk_write", min(limits.BULK_WRITE_THREADS, config.threads), share)
        self.probes: Final = self._fair("probe", _PROBE_THREADS, share=1)
        # A few more threads than watches, so that a watch above the limit is rejected at once and does not wait.
        self.watches: Final = StreamExecutor(admission, config.max_watches + 4, "watch", config.max_queue_depth)
        self.health_watches: Final = StreamExecutor(admission, limits.MAX_HEALTH_WATCHES, "health")
        self.reflection: Final = StreamExecutor(admission, limits.MAX_REFLECTION_STREAMS, "reflection", share=share)

    def unary(self) -> dict[str, FairExecutor]:
        """Returns the executors of the contract's unary calls, by name."""
        return {"read": self.reads, "scan": self.scans, "write": self.writes, "bulk_write": self.bulk_writes}

    def shutdown_and_wait(self, seconds: float) -> bool:
        """Shuts down the executors of unary calls, which may write. Returns whether all threads ended in time."""
        until = time.monotonic() + seconds
        ended = [executor.shutdown_and_wait(until) for executor in (*self.unary().values(), self.probes)]
        return all(ended)

    def _fair(self, name: str, threads: int, share: float) -> FairExecutor:
        queue = FairQueue(threads, self._config.max_queue_depth, self._config.queue_timeout_seconds, share)
        return FairExecutor(self._admission, name, queue, self._clock)
