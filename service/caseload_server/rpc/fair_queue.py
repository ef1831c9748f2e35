"""The queue of an executor: callers take turns, and none can fill the queue or take all threads."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from caseload_server.domain import limits
from caseload_server.rpc.grpcio_compat import IncomingCall


class _Caller:
    """The calls of one caller."""

    __slots__ = ("running", "waiting", "waiting_bytes")

    def __init__(self) -> None:
        self.running = 0
        self.waiting: deque[IncomingCall] = deque()
        self.waiting_bytes = 0


class FairQueue:
    """Calls that wait for a thread, oldest first for each caller. The executor must hold its lock during each call."""

    def __init__(self, threads: int, max_depth: int, timeout_seconds: float, share: float) -> None:
        """Args: share, the largest part of the threads and of the queue that one caller may have, from 0 to 1."""
        self.threads: Final = threads
        self.timeout_seconds: Final = timeout_seconds
        self._max_running: Final = math.ceil(threads * share)
        self._max_depth: Final = max_depth
        self._max_waiting: Final = math.ceil(max_depth * share)
        self._max_waiting_bytes: Final = math.ceil(limits.MAX_QUEUED_BYTES * share)
        self._callers: dict[str, _Caller] = {}
        self._turns: deque[_Caller] = deque()
        """Callers with waiting calls, in the order in which they are served."""
        self.depth = 0
        """The number of waiting calls."""
        self._bytes = 0
        """The size of their messages."""

    def start(self, call: IncomingCall) -> bool:
        """Counts the call as running. Returns False when its caller already has its share of the threads."""
        caller = self._caller(call)
        if caller.running >= self._max_running:
            return False
        caller.running += 1
        return True

    def add(self, call: IncomingCall) -> bool:
        """Adds a call. Returns False when there is no room, or the caller's oldest call has waited for too long."""
        caller = self._caller(call)
        waiting = caller.waiting
        if not self._has_room(caller, call.message_bytes):
            return False
        if not waiting:
            self._turns.append(caller)
        elif call.queued_at - waiting[0].queued_at > self.timeout_seconds / 2:
            return False
        waiting.append(call)
        self._count(caller, 1, call.message_bytes)
        return True

    def replace(self, ended: IncomingCall) -> IncomingCall | None:
        """Returns the next call after one has ended, and counts it as running. Returns None when no call may run."""
        self._callers[ended.caller].running -= 1
        for _ in range(len(self._turns)):
            caller = self._turns.popleft()
            if caller.running < self._max_running:
                call = self._take(caller)
                if caller.waiting:
                    self._turns.append(caller)
                caller.running += 1
                return call
            self._turns.append(caller)
        return None

    def take_expired(self, is_too_late: Callable[[IncomingCall], bool]) -> Iterator[IncomingCall]:
        """Removes and yields the first calls of each caller that are too late."""
        for caller in list(self._turns):
            while caller.waiting and is_too_late(caller.waiting[0]):
                yield self._take(caller)
            if not caller.waiting:
                self._turns.remove(caller)

    def _caller(self, call: IncomingCall) -> _Caller:
        caller = self._callers.get(call.caller)
        if caller is None:  # entries are never removed: there are at most as many as principals
            caller = self._callers[call.caller] = _Caller()
        return caller

    def _has_room(self, caller: _Caller, size: int) -> bool:
        has_slot = self.depth < self._max_depth and len(caller.waiting) < self._max_waiting
        return (
            has_slot
            and self._bytes + size <= limits.MAX_QUEUED_BYTES
            and caller.waiting_bytes + size <= self._max_waiting_bytes
        )

    def _take(self, caller: _Caller) -> IncomingCall:
        call = caller.waiting.popleft()
        self._count(caller, -1, -call.message_bytes)
        return call

    def _count(self, caller: _Caller, calls: int, size: int) -> None:
        self.depth += calls
        self._bytes += size
        caller.waiting_bytes += size
