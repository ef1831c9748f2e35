"""One call, as grpcio's server hands it to an executor. The only module that uses private names of grpcio.

grpcio itself takes a thread for each call and waits in it for the message. A caller that never sends one keeps the
thread, so a few dozen such calls stop a server. Receiving the message first also saves each call two thread switches.

This module also answers unary calls, because grpcio's own function spends time on a context manager, imports and hooks.

`check_grpcio` checks that grpcio has the private functions used here. With any other grpcio the server does not start.
The project pins grpcio to the tested range.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from typing import Any, Final

import grpc
import structlog
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from caseload_server.config import SettingError

_log = structlog.get_logger()

_RESUMED: Final = "resumed"
_POOL_PARAMETERS: Final = [
    *("rpc_event", "state", "behavior", "argument_thunk", "request_deserializer", "response_serializer")
]
_PARAMETERS: Final = {
    "_Context": ["rpc_event", "state", "request_deserializer"],
    "_abort": ["state", "call", "code", "details"],
    "_is_rpc_state_active": ["state"],
    "_possibly_finish_call": ["state", "token"],
    "_receive_message": ["state", "call", "request_deserializer"],
    "_status": ["rpc_event", "state", "serialized_response"],
    "_unary_response_in_pool": _POOL_PARAMETERS,
    "_stream_response_in_pool": _POOL_PARAMETERS,
}


def check_grpcio() -> None:
    """Raises SettingError unless grpcio has the private names used here, with the same parameters."""
    private = vars(_server)
    if "_RECEIVE_MESSAGE_TOKEN" not in private or any(
        name not in private or list(signature(private[name]).parameters) != parameters
        for name, parameters in _PARAMETERS.items()
    ):
        raise SettingError("grpcio", f"version {grpc.__version__} is not supported: install one that the server pins")


def log_dropped(error: Exception) -> None:
    """Logs a defect that ends a call before it is run."""
    _log.error("call dropped", type=type(error).__qualname__)


class IncomingCall:
    """One call, from the arrival of its headers to its end. The handler gets it in place of the request."""

    __slots__ = (
        *("_event", "_in_pool", "_parse", "_state", "_thunk", "_write"),
        *("awaits_message", "caller", "handler", "message", "peer", "queued_at", "stalls_at", "untaken"),
    )

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        """Args: arguments, those that grpcio submits to an executor."""
        self._in_pool, self._event, self._state, self.handler, self._thunk, self._parse, self._write = arguments
        self.message: Any = None
        """The bytes of the request once they have arrived, or the iterator of a stream of requests."""
        self.peer = str(self._event.call.peer(), "utf-8")  # grpcio returns an empty one for a cancelled call
        """The address of the connection, or that of the caller of a proxy."""
        self.caller = ""
        """The name of the principal; empty for a public method."""
        self.queued_at = 0.0
        """By the executor's clock, in seconds."""
        self.awaits_message = False
        """Whether admission waits for the message."""
        self.stalls_at = math.inf
        """The time.monotonic() at which the caller has taken too long to send its message, or to read a response."""
        self.untaken: Counter[str] | None = None
        """The size of the unread response, under each name in Admission that counts it."""

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Returns the metadata that the caller has sent."""
        return self._event.invocation_metadata  # type: ignore[no-any-return]

    def is_active(self) -> bool:
        """Returns whether the call can still be answered."""
        return bool(_server._is_rpc_state_active(self._state))

    def is_received(self) -> bool:
        """Returns whether the message has arrived. The handler of a stream reads it, so it counts as arrived."""
        return self.message is not None or self._thunk.__name__ != "unary_request"

    @property
    def message_bytes(self) -> int:
        """The size of the message, in bytes; 0 if it has not arrived, was taken, or is a stream."""
        return len(self.message) if isinstance(self.message, bytes) else 0

    def take_message(self) -> Any:
        """Returns the message, and keeps it no longer: an unread response may keep the call for a while."""
        message = self.message
        if isinstance(message, bytes):
            self.message = b""
        return message

    def seconds_left(self) -> float:
        """Returns the time until the call's deadline, in seconds."""
        return float(self._event.call_details.deadline) - time.time()

    def authorize(self, check: Callable[[grpc.ServicerContext], str]) -> None:
        """Runs a check in the context of the call, and sets `caller` to the name that it returns."""
        context = _server._Context(self._event, self._state, None)
        self.caller = self._state.context.run(check, context)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Adds a callback for the end of the call: the caller has read the response, or has disconnected.

        The callback runs in the thread that receives calls. Only the thread that receives this call may add one.
        """
        self._state.callbacks.append(callback)

    def receive(self, proceed: Callable[["IncomingCall"], None]) -> None:
        """Calls `proceed` once the message has arrived, or cannot arrive any more. Takes no thread until then."""
        if self.is_received():
            proceed(self)
            return
        state = self._state
        received = _server._receive_message(state, self._event.call, self._parse)

        def arrived(batch: Any) -> Any:
            outcome = received(batch)
            self.message, state.request = state.request, None
            try:
                proceed(self)
            except Exception as error:  # noqa: BLE001 - it would end the thread that receives calls
                log_dropped(error)
                self.cancel()
            return outcome

        with state.condition:
            self._event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), arrived)
            state.due.add(_server._RECEIVE_MESSAGE_TOKEN)

    def resume(self, proceed: Callable[["IncomingCall"], None]) -> None:
        """Has the thread that receives calls call `proceed`, unless the call ends before. Can run in any thread.

        The C core completes an empty batch at once, and hands it to that thread.
        """
        state = self._state

        def resumed(_batch: Any) -> Any:
            with state.condition:
                outcome = _server._possibly_finish_call(state, _RESUMED)
            if self.is_active():
                proceed(self)
            return outcome

        with state.condition:
            if self.is_active():
                self._event.call.start_server_batch((), resumed)
                state.due.add(_RESUMED)

    def run(self) -> None:
        """Runs the handler in the current thread, and answers the call."""
        if self._in_pool is _server._unary_response_in_pool:
            self._in_context(self._answer_unary)
        else:
            self._answer(self.handler, self._argument)

    def refuse(self, handler: Callable[["IncomingCall", grpc.ServicerContext], Any]) -> None:
        """Runs another handler in place of the call's own. It must not read the message."""
        self._answer(handler, lambda: self if self.is_active() else None)

    def reject_without_message(self) -> None:
        """Rejects a call whose message cannot arrive any more. Does nothing if the library has rejected it already."""
        with self._state.condition:
            code = cygrpc.StatusCode.invalid_argument
            _server._abort(self._state, self._event.call, code, b"The call must have a message.")

    def cancel(self) -> None:
        """Ends the call without a response."""
        self._event.call.cancel()

    def _in_context(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(BaseException):  # the handlers answer their own errors; the thread must survive all others
            self._state.context.run(function, *arguments)

    def _answer(self, handler: Any, argument: Callable[[], Any]) -> None:
        self._in_context(self._in_pool, self._event, self._state, handler, argument, self._parse, self._write)

    def _answer_unary(self) -> None:
        """Does what grpcio's `_unary_response_in_pool` does. A call takes 7 % fewer instructions this way."""
        state = self._state
        if not self.is_active():  # no work for a call that has ended
            return
        try:
            answer = self.handler(self, _server._Context(self._event, state, None))
        except BaseException:  # noqa: BLE001 - the handler has set the status
            with state.condition:
                _server._abort(state, self._event.call, cygrpc.StatusCode.unknown, b"")
        else:
            _server._status(self._event, state, answer)

    def _argument(self) -> "IncomingCall | None":
        if self.message is None:
            self.message = self._thunk()  # the iterator of a stream of requests
        return self if self.is_active() else None  # no work for a call that has ended
