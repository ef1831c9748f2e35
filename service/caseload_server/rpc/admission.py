"""Admits calls: authorizes each call when its headers arrive, and limits what one caller and all callers may hold.

A caller can hold memory without using a thread, if it sends a message slowly or does not read a response. Both have
limits in number, bytes and time, for the process and for each caller.
"""

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import grpc

from caseload_server.domain import errors, limits
from caseload_server.rpc.grpcio_compat import IncomingCall
from caseload_server.rpc.retry_delays import RetryDelays

Handler = Callable[[IncomingCall, grpc.ServicerContext], Any]
_SWEEP_SECONDS: Final = 0.25
_BURST_SECONDS: Final = 0.1
"""A newer health check may displace one whose message has not arrived after this time, in seconds."""


class Duration:
    """Estimates how long the calls of one method take: a mean and a deviation, as RFC 6298 does for round trips."""

    __slots__ = ("_deviation", "_mean")

    def __init__(self) -> None:
        self._mean = 0.0
        self._deviation = 0.0

    def add(self, seconds: float) -> None:
        """Adds the duration of one call. Threads may overwrite each other's update, which changes little."""
        difference = seconds - self._mean
        self._mean += difference / 8
        self._deviation += (abs(difference) - self._deviation) / 4

    def expected(self) -> float:
        """Returns the time within which nearly all calls end, in seconds."""
        return self._mean + 2 * self._deviation


class Method:
    """The data of a method that admission needs. It is the attribute `method` of the method's handler."""

    __slots__ = ("authorize", "duration", "max_request_bytes", "refusal", "shed")

    def __init__(
        self,
        authorize: Callable[[grpc.ServicerContext], str],
        max_request_bytes: int,
        refusal: Callable[[errors.DomainError], Handler],
        shed: Callable[[errors.DomainError], Handler] | None = None,
    ) -> None:
        """Args: authorize, returns the caller's name, or raises a DomainError; max_request_bytes, the largest request.

        refusal, returns the handler that rejects a call with an error; shed, the same for a call that is shed.
        """
        self.authorize = authorize
        self.max_request_bytes = max_request_bytes
        self.refusal = refusal
        self.shed = shed or refusal
        self.duration = Duration()


class _Caller:
    """The open calls of one caller, oldest first. Only the thread that receives calls changes them."""

    __slots__ = ("open", "receiving")

    def __init__(self) -> None:
        self.open: dict[IncomingCall, None] = {}
        self.receiving: dict[IncomingCall, None] = {}
        """Those whose message is being received."""


class Admission:
    """The open calls of one server."""

    def __init__(self, share: float) -> None:
        """Starts the thread that ends stalled calls. Args: share, the largest part of each limit for one principal."""
        self._share = share
        self._retry_delays = RetryDelays()
        self._public = _Caller()
        """All callers of public methods, which have limits of their own."""
        self._callers: defaultdict[str, _Caller] = defaultdict(_Caller, {"": self._public})
        self._open: dict[IncomingCall, None] = {}
        self._receiving = 0
        """The number of principals' calls whose message is being received."""
        self._pending: dict[IncomingCall, Callable[[IncomingCall], None]] = {}
        """Principals' calls that wait until another message has arrived, each with the function that then runs it."""
        self._lock = threading.Lock()
        self._untaken: Counter[str] = Counter()
        """Bytes of large unread responses, by connection and by caller, and in total under the name ""."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sweep, name="admission", daemon=True)
        self._thread.start()

    def admit(self, call: IncomingCall, proceed: Callable[[IncomingCall], None]) -> None:
        """Rejects a call, or calls `proceed` once its message has arrived. Runs in the thread that receives calls."""
        method: Method = call.handler.method
        try:
            call.authorize(method.authorize)
            self._begin(call)
        except errors.DomainError as error:
            call.refuse(method.refusal(error))
        else:
            self._receive(call, proceed)

    def shed(self, call: IncomingCall) -> None:
        """Rejects a call because the server is overloaded."""
        call.refuse(call.handler.method.shed(self._overloaded()))

    def answered(self, call: IncomingCall) -> None:
        """Starts the time within which the caller must read the response."""
        call.stalls_at = time.monotonic() + limits.STUCK_READER_SECONDS

    def count_answer(self, call: IncomingCall, size: int) -> None:
        """Counts the bytes of a response until the caller has read it. Raises Overloaded above the limits.

        It does not count small responses, because the number of open calls limits them.
        """
        if size <= limits.SMALL_ANSWER_BYTES:
            return
        share = math.ceil(limits.MAX_UNTAKEN_BYTES * self._share)
        connection = call.peer()  # after the end of the call, grpcio returns another value
        most = {"": limits.MAX_UNTAKEN_BYTES, f"caller {call.caller}": share, connection: limits.MAX_CONNECTION_BYTES}
        with self._lock:
            if any(self._untaken[key] + size > limit for key, limit in most.items()):
                raise self._overloaded()
            if call in self._open:
                call.untaken = Counter(dict.fromkeys(most, size))
                self._untaken += call.untaken

    def close(self) -> None:
        """Ends the thread."""
        self._stopped.set()

    def _overloaded(self) -> errors.Overloaded:
        return errors.Overloaded(self._retry_delays.next_seconds())

    def _begin(self, call: IncomingCall) -> None:
        """Counts a call. Raises Overloaded above the limits.

        Above the limit of public calls, it ends the oldest one instead, because the newest may be a health probe.
        """
        caller = self._callers[call.caller]
        if call.caller:
            total = len(self._open) - len(self._public.open)
            if len(caller.open) >= limits.MAX_OPEN_CALLS * self._share or total >= limits.MAX_OPEN_CALLS:
                raise self._overloaded()
        elif len(caller.open) >= limits.MAX_OPEN_PUBLIC_CALLS and not self._end_oldest(caller.open):
            raise self._overloaded()
        caller.open[call] = self._open[call] = None
        call.on_end(partial(self._end, call))

    def _receive(self, call: IncomingCall, proceed: Callable[[IncomingCall], None]) -> None:
        """Receives the message, at once or after another one has arrived."""
        if call.is_received():
            proceed(call)
            return
        call.stalls_at = time.monotonic() + limits.MESSAGE_TIMEOUT_SECONDS
        if call.caller and not self._may_receive(call):
            self._pending[call] = proceed
            return
        receiving = self._callers[call.caller].receiving
        if not call.caller and len(receiving) >= limits.MAX_PUBLIC_CALLS_RECEIVING:
            while self._end_oldest(receiving, min_seconds=_BURST_SECONDS):
                pass
        receiving[call] = None
        self._receiving += bool(call.caller)
        call.receive(partial(self._received, proceed))

    def _may_receive(self, call: IncomingCall) -> bool:
        of_caller = len(self._callers[call.caller].receiving)
        most = limits.MAX_CALLS_RECEIVING
        return self._receiving < most and of_caller < most * self._share

    def _received(self, proceed: Callable[[IncomingCall], None], call: IncomingCall) -> None:
        call.stalls_at = math.inf
        del self._callers[call.caller].receiving[call]
        self._receiving -= bool(call.caller)
        if len(call.message or b"") > call.handler.method.max_request_bytes:
            call.run()  # its handler rejects it at once, so the queue never holds a request that is too large
        elif call.is_active():
            proceed(call)
        if self._pending:
            self._receive_pending()

    def _receive_pending(self) -> None:
        for call in self._pending:
            if self._may_receive(call):
                self._receive(call, self._pending.pop(call))
                return

    def _end(self, call: IncomingCall) -> None:
        del self._open[call], self._callers[call.caller].open[call]
        self._pending.pop(call, None)
        with self._lock:
            if call.untaken:
                self._untaken -= call.untaken  # this also removes the keys that reach zero

    def _sweep(self) -> None:
        """Ends calls that have stalled."""
        while not self._stopped.wait(_SWEEP_SECONDS):
            now = time.monotonic()
            for call in self._open.copy():  # copying is atomic; the other thread changes the dict meanwhile
                if call.stalls_at <= now:
                    _end_stalled(call, errors.DeadlineExceeded())

    def _end_oldest(self, calls: dict[IncomingCall, None], min_seconds: float = 0.0) -> bool:
        """Ends the oldest call whose caller delays it. Returns whether there was one.

        Args: min_seconds, leaves alone calls that have waited for their message for less time than this.
        """
        latest = time.monotonic() + limits.MESSAGE_TIMEOUT_SECONDS - min_seconds if min_seconds else math.inf
        for call in calls:
            if call.stalls_at < latest:
                _end_stalled(call, self._overloaded())
                return True
        return False


def _end_stalled(call: IncomingCall, error: errors.DomainError) -> None:
    """Rejects a call whose message did not arrive. Cancels a call whose response was not read."""
    call.stalls_at = math.inf
    if call.is_received():
        call.cancel()
    else:
        call.refuse(call.handler.method.refusal(error))
