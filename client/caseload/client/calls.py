"""The stub methods of the synchronous client, which apply the defaults and add the reason to errors."""

from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, Final

import grpc
from caseload.client.call_defaults import CLOSED, CallDefaults
from caseload.client.connection_errors import (
    PROBE_METHOD,
    PROBE_OPTIONS,
    STILL_CONNECTING,
    NoConnectionError,
    Pause,
    connection_error,
    has_timed_out,
    may_lack_connection,
)
from caseload.client.errors import add_reason

Serialize = Callable[[Any], bytes]
Explain = Callable[[grpc.RpcError], grpc.RpcError]
_PARAMETERS: Final = ("timeout", "metadata", "credentials", "wait_for_ready", "compression")
"""The parameters of a grpc call after the request, in their order."""


class ChannelWithDefaults:
    """Wraps a channel. Stubs built on it get methods that apply the defaults."""

    def __init__(self, channel: grpc.Channel, defaults: CallDefaults, closed: Event) -> None:
        """Wraps a channel.

        Args:
            channel: the channel that carries the calls.
            defaults: the defaults of each call.
            closed: after it is set, every new call raises ValueError.
        """
        self._channel: Final[Any] = channel
        self._defaults = defaults
        self._closed = closed
        self._pause = Pause()

    def unary_unary(self, method: str, request_serializer: Serialize, *rest: Any, **named: Any) -> "_MultiCallable":
        """The method of grpc.Channel, with the defaults."""
        callable_ = self._channel.unary_unary(method, request_serializer, *rest, **named)
        return _UnaryMultiCallable(callable_, self._defaults.of_method(method), self._explained, self._closed)

    def unary_stream(self, method: str, request_serializer: Serialize, *rest: Any, **named: Any) -> "_MultiCallable":
        """The method of grpc.Channel, with the defaults but without a deadline."""
        callable_ = self._channel.unary_stream(method, request_serializer, *rest, **named)
        return _StreamMultiCallable(callable_, self._defaults.of_stream(), self._explained, self._closed)

    def last_connection_error(self) -> str:
        """Returns the last connection error of the channel, or an empty string if the channel has a connection."""
        if self._closed.is_set():
            return ""
        try:
            self._channel.unary_unary(PROBE_METHOD)(b"", **PROBE_OPTIONS)
        except grpc.RpcError as error:
            if has_timed_out(error):
                return STILL_CONNECTING if self._is_connecting() else ""
            return connection_error(error)
        except ValueError:  # the channel was closed just now
            return ""
        return ""

    def _is_connecting(self) -> bool:
        states: SimpleQueue[grpc.ChannelConnectivity] = SimpleQueue()
        report = states.put
        self._channel.subscribe(report)  # the only public way to read the state: a callback gets it from a thread
        try:
            return states.get(timeout=PROBE_OPTIONS["timeout"]) is grpc.ChannelConnectivity.CONNECTING
        except Empty:
            return False
        finally:
            self._channel.unsubscribe(report)

    def _cause(self) -> str:
        return self.last_connection_error() if self._pause.start() else ""

    def _explained(self, error: grpc.RpcError) -> grpc.RpcError:
        if may_lack_connection(error) and (cause := self._cause()):
            return NoConnectionError(error, cause)
        return add_reason(error)


class _MultiCallable:
    """A stub's method."""

    def __init__(self, callable_: Any, defaults: CallDefaults, explained: Explain, closed: Event) -> None:
        self._callable = callable_
        self._defaults = defaults
        self._explained = explained
        self._closed = closed

    def _start(self, start: Callable[..., Any], request: Any, *positional: Any, **named: Any) -> Any:
        if self._closed.is_set():  # with interceptors, grpc itself would crash the process
            raise ValueError(CLOSED)
        given = dict(zip(_PARAMETERS[: len(positional)], positional, strict=True)) | named
        return start(self._defaults.request(request), **self._defaults.options(given))


class _UnaryMultiCallable(_MultiCallable):
    """grpc.UnaryUnaryMultiCallable with the defaults."""

    def __call__(self, request: Any, *rest: Any, **named: Any) -> Any:
        return self._result(self._callable, request, *rest, **named)

    def with_call(self, request: Any, *rest: Any, **named: Any) -> Any:
        return self._result(self._callable.with_call, request, *rest, **named)

    def future(self, request: Any, *rest: Any, **named: Any) -> Any:
        return _Future(self._start(self._callable.future, request, *rest, **named), self._explained)

    def _result(self, start: Callable[..., Any], *rest: Any, **named: Any) -> Any:
        try:
            return self._start(start, *rest, **named)
        except grpc.RpcError as error:
            raise self._explained(error) from None


class _StreamMultiCallable(_MultiCallable):
    """grpc.UnaryStreamMultiCallable with the defaults."""

    def __call__(self, request: Any, *rest: Any, **named: Any) -> Any:
        return _Stream(self._start(self._callable, request, *rest, **named), self._explained)


class _Call:
    """Wraps a grpc call, and adds the reason to its errors."""

    def __init__(self, call: Any, explained: Explain) -> None:
        self._call = call
        self._explained = explained

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


@grpc.Future.register
@grpc.Call.register
class _Future(_Call):
    """The future of a unary call."""

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._call.result(timeout)
        except grpc.RpcError as error:
            raise self._explained(error) from None

    def exception(self, timeout: float | None = None) -> Any:
        error = self._call.exception(timeout)
        return self._explained(error) if isinstance(error, grpc.RpcError) else error

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        def done(_: Any) -> None:
            fn(self)

        self._call.add_done_callback(done)


@grpc.Call.register
class _Stream(_Call):
    """The responses of a streaming call."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise self._explained(error) from None

    def cancel(self) -> Any:
        # Instrumentation turns a call into a generator, which has no cancel; closing that lets go of the call.
        return self._call.cancel() if hasattr(self._call, "cancel") else self._call.close()
