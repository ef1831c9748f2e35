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
from queue import SimpleQueue
from typing import Any, Final

import grpc

from caseload_server.domain import errors, limits
from caseload_server.rpc.grpcio_compat import IncomingCall, log_dropped
from caseload_server.rpc.retry_delays import RetryDelays
from caseload_server.security.proxies import TrustedProxies

Handler = Callable[[IncomingCall, grpc.ServicerContext], Any]
_SWEEP_SECONDS: Final = 0.25
_BURST_SECONDS: Final = 0.1
"""A call gives way to newer ones when its message has not arrived after this time, in seconds."""
_MAX_QUEUED_REJECTIONS: Final = 1000
"""Further calls are cancelled."""
_CLOSE_TIMEOUT_SECONDS: Final = 1.0


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

    __slots__ = ("authorize", "durations", "max_request_bytes", "refusal", "shed")

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
        self.durations: defaultdict[str, Duration] = defaultdict(Duration)
        """How long the calls of each caller take: one asks for large pages, another for small ones."""


class _Caller:
    """The open calls of one caller, oldest first. Only the thread that receives calls changes them."""

    __slots__ = ("open", "receiving")

    def __init__(self) -> None:
        self.open: dict[IncomingCall, None] = {}
        self.receiving: dict[IncomingCall, None] = {}
        """Those whose message is being received."""


class Admission:
    """The open calls of one server."""

    def __init__(self, share: float, proxies: TrustedProxies | None = None) -> None:
        """Starts the thread that ends stalled calls.

        Args: share, the largest part of each limit for one principal; proxies, in front of the server.
        """
        self._share = share
        self._proxies = proxies or TrustedProxies(())
        self._retry_delays = RetryDelays()
        self._public = _Caller()
        """All callers of public methods, which have limits of their own."""
        self._callers: defaultdict[str, _Caller] = defaultdict(_Caller, {"": self._public})
        self._open: dict[IncomingCall, None] = {}
        self._receiving: dict[IncomingCall, None] = {}
        """Principals' calls whose message is being received, oldest first."""
        self._pending: dict[IncomingCall, Callable[[IncomingCall], None]] = {}
        """Principals' calls that wait until another message has arrived, each with the function that then runs it."""
        self._lock = threading.Lock()
        self._untaken: Counter[str] = Counter()
        """Bytes of large unread responses, by connection and by caller, and in total under the name ""."""
        self._rejected: SimpleQueue[tuple[IncomingCall, Handler] | None] = SimpleQueue()
        """Calls to reject, each with the handler that does so. None ends the thread."""
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._sweep, name="admission", daemon=True),
            threading.Thread(target=self._reject_queued, name="rejections", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def admit(self, call: IncomingCall, proceed: Callable[[IncomingCall], None]) -> None:
        """Rejects a call, or calls `proceed` once its message has arrived. Runs in the thread that receives calls."""
        call.peer = self._proxies.caller(call.peer, call.metadata())
        self._admit(call, proceed, may_wait=True)

    def _admit(self, call: IncomingCall, proceed: Callable[[IncomingCall], None], *, may_wait: bool) -> None:
        """Args: may_wait, whether the call may be tried once more, when its credentials may be known."""
        method: Method = call.handler.method
        try:
            call.authorize(method.authorize)
            self._begin(call)
            self._receive(call, proceed)
        except errors.DomainError as error:
            retry = error.retry if may_wait and isinstance(error, errors.Unauthenticated) else None
            again = partial(self._admit, proceed=proceed, may_wait=False)
            if not (retry and retry(partial(call.resume, again))):
                self._reject(call, method.refusal(error))
        except Exception as error:  # noqa: BLE001 - it would end the thread that receives calls
            log_dropped(error)
            call.cancel()

    def shed(self, call: IncomingCall) -> None:
        """Rejects a call because the server is overloaded, or because its deadline has passed."""
        error = self._overloaded() if call.seconds_left() > 0 else errors.DeadlineExceeded()
        self._reject(call, call.handler.method.shed(error))

    def answered(self, call: IncomingCall) -> None:
        """Starts the time within which the caller must read the response."""
        call.stalls_at = time.monotonic() + limits.STUCK_READER_SECONDS

    def check_unread(self, call: IncomingCall) -> None:
        """Raises Overloaded if the caller leaves too much unread to start this call."""
        if self._untaken and self._exceeds(self._limits_of_unread(call), 1):
            raise self._overloaded()

    def count_answer(self, call: IncomingCall, size: int, *, may_reject: bool) -> None:
        """Counts the bytes of a response until the caller has read it. Raises Overloaded above the limits.

        It does not count small responses, because the number of open calls limits them.

        Args: may_reject, False for a write, which has committed.
        """
        if size <= limits.SMALL_ANSWER_BYTES:
            return
        most = self._limits_of_unread(call)
        with self._lock:
            if may_reject and self._exceeds(most, size):
                raise self._overloaded()
            if call in self._open:
                call.untaken = Counter(dict.fromkeys(most, size))
                self._untaken += call.untaken

    def close(self) -> None:
        """Ends the threads. Waits a moment for rejections, so that they are logged before the access log closes."""
        self._stopped.set()
        self._rejected.put(None)
        for thread in self._threads:
            thread.join(_CLOSE_TIMEOUT_SECONDS)

    def _limits_of_unread(self, call: IncomingCall) -> dict[str, int]:
        """Returns what the response of a call counts for, each with its limit in bytes."""
        share = math.ceil(limits.MAX_UNTAKEN_BYTES * self._share)
        return {"": limits.MAX_UNTAKEN_BYTES, f"caller {call.caller}": share, call.peer: limits.MAX_CONNECTION_BYTES}

    def _exceeds(self, most: dict[str, int], size: int) -> bool:
        return any(self._untaken[key] + size > limit for key, limit in most.items())

    def _reject(self, call: IncomingCall, handler: Handler) -> None:
        """Rejects a call in a thread of its own: the access log may hang, and the caller's thread must not."""
        if self._rejected.qsize() < _MAX_QUEUED_REJECTIONS:
            self._rejected.put((call, handler))
        else:
            call.cancel()

    def _reject_queued(self) -> None:
        while (rejected := self._rejected.get()) is not None:
            call, handler = rejected
            call.refuse(handler)

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
        call.awaits_message = True
        call.stalls_at = time.monotonic() + limits.MESSAGE_TIMEOUT_SECONDS
        if self._may_receive(call):
            self._start_receiving(call, proceed)
        else:
            self._pending[call] = proceed

    def _start_receiving(self, call: IncomingCall, proceed: Callable[[IncomingCall], None]) -> None:
        if call.caller:
            self._make_room(self._receiving, limits.MAX_CALLS_RECEIVING)
            self._receiving[call] = None
        else:
            self._make_room(self._public.receiving, limits.MAX_PUBLIC_CALLS_RECEIVING)
        self._callers[call.caller].receiving[call] = None
        call.receive(partial(self._received, proceed))

    def _may_receive(self, call: IncomingCall) -> bool:
        """Returns whether the caller has less than its share of the calls whose message is being received."""
        return not call.caller or (len(self._callers[call.caller].receiving) < limits.MAX_CALLS_RECEIVING * self._share)

    def _make_room(self, receiving: dict[IncomingCall, None], limit: int) -> None:
        """Ends the oldest calls above a limit, so that slow callers cannot keep a new one out. Spares a burst."""
        excess = len(receiving) - limit + 1
        latest = time.monotonic() + limits.MESSAGE_TIMEOUT_SECONDS - _BURST_SECONDS
        for call in receiving if excess > 0 else ():
            if excess <= 0 or latest < call.stalls_at < math.inf:  # all later ones are newer
                return
            self._end_stalled(call, self._overloaded())
            excess -= 1

    def _received(self, proceed: Callable[[IncomingCall], None], call: IncomingCall) -> None:
        with self._lock:
            was_ended = call.stalls_at == math.inf
            call.stalls_at = math.inf
            call.awaits_message = False
        del self._callers[call.caller].receiving[call]
        self._receiving.pop(call, None)
        method: Method = call.handler.method
        if was_ended or not call.is_active():
            call.take_message()  # so that its rejection does not keep it in memory
        elif call.message is None:
            call.reject_without_message()
        elif len(call.message) > method.max_request_bytes:
            self._reject(call, call.handler)  # which does so at once: the queue never holds a request that is too large
        else:
            proceed(call)
        if self._pending:
            self._receive_pending()

    def _receive_pending(self) -> None:
        for call in self._pending:
            if call.stalls_at < math.inf and self._may_receive(call):  # otherwise it was ended while it waited
                self._start_receiving(call, self._pending.pop(call))
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
                    self._end_stalled(call, errors.DeadlineExceeded(), now)

    def _end_oldest(self, calls: dict[IncomingCall, None]) -> bool:
        """Ends the oldest call whose caller delays it. Returns whether there was one."""
        return any(self._end_stalled(call, self._overloaded()) for call in calls if call.stalls_at < math.inf)

    def _end_stalled(self, call: IncomingCall, error: errors.DomainError, until: float = math.inf) -> bool:
        """Rejects a call whose message did not arrive. Cancels a call whose response was not read.

        Args: until, ends no call that stalls later, by time.monotonic(). Returns False if the caller no longer delays
        the call, which another thread may have noticed meanwhile.
        """
        with self._lock:
            if call.stalls_at == math.inf or call.stalls_at > until:
                return False
            call.stalls_at = math.inf
            awaits_message = call.awaits_message
        if awaits_message:
            self._reject(call, call.handler.method.refusal(error))
        else:
            call.cancel()
        return True
