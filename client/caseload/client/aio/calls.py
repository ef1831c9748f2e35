"""The stub methods of the asyncio client, which apply the defaults and add the reason to errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

import grpc
from caseload.client.call_defaults import CLOSED, CallDefaults
from caseload.client.connection_errors import (
    PROBE_METHOD,
    PROBE_OPTIONS,
    STILL_CONNECTING,
    Pause,
    connection_error,
    details_with,
    has_timed_out,
    may_lack_connection,
)
from caseload.client.errors import add_reason
from grpc.aio import AioRpcError, Metadata, UsageError

Serialize = Callable[[Any], bytes]


class ChannelWithDefaults:
    """Wraps a channel of grpc.aio. Stubs built on it get methods that apply the defaults."""

    def __init__(self, channel: grpc.aio.Channel, defaults: CallDefaults, closed: asyncio.Event) -> None:
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
        self._calls: WeakSet[Any] = WeakSet()

    def unary_unary(self, method: str, request_serializer: Serialize, *rest: Any, **named: Any) -> Callable[..., Any]:
        """The method of grpc.aio.Channel, with the defaults."""
        callable_ = self._channel.unary_unary(method, request_serializer, *rest, **named)
        return self._with_defaults(callable_, self._defaults.of_method(method), _UnaryCall)

    def unary_stream(self, method: str, request_serializer: Serialize, *rest: Any, **named: Any) -> Callable[..., Any]:
        """The method of grpc.aio.Channel, with the defaults but without a deadline."""
        callable_ = self._channel.unary_stream(method, request_serializer, *rest, **named)
        return self._with_defaults(callable_, self._defaults.of_stream(), _Stream)

    def cancel_calls(self) -> None:
        """Cancels the calls in flight."""
        # Up to grpcio 1.80 the channel looks for its calls in the stacks of tasks, and misses these when it is closed.
        for call in list(self._calls):
            with suppress(Exception):  # an interceptor's own, which the caller has seen
                call.cancel()

    async def last_connection_error(self) -> str:
        """Returns the last connection error of the channel, or an empty string if the channel has a connection."""
        try:
            await self._channel.unary_unary(PROBE_METHOD)(b"", **PROBE_OPTIONS)
        except AioRpcError as error:
            if has_timed_out(error):
                is_connecting = self._channel.get_state() is grpc.ChannelConnectivity.CONNECTING
                return STILL_CONNECTING if is_connecting else ""
            return connection_error(error)
        except UsageError:  # the channel was closed just now
            return ""
        except asyncio.CancelledError:
            if not self._is_ended_by_close():
                raise
        return ""

    async def outcome(self, response: Awaitable[Any]) -> Any:
        """Awaits a response. Raises the error of its call, with the reason added."""
        try:
            return await response
        except AioRpcError as error:
            raise await self._explained(error) from None
        except asyncio.CancelledError:
            if not self._is_ended_by_close():
                raise
            raise AioRpcError(grpc.StatusCode.CANCELLED, Metadata(), Metadata(), CLOSED) from None

    def _with_defaults(self, callable_: Any, defaults: CallDefaults, wrap: "type[_Call]") -> Callable[..., Any]:
        def start(request: Any, **given: Any) -> _Call:
            if self._closed.is_set():
                raise ValueError(CLOSED)
            call = callable_(defaults.request(request), **defaults.options(given))
            self._calls.add(call)
            return wrap(call, self)

        return start

    def _is_ended_by_close(self) -> bool:
        """Returns whether closing this client cancelled a call. The task that awaits the call is not cancelled then."""
        return self._closed.is_set() and not _is_cancelled()

    async def _cause(self) -> str:
        return await self.last_connection_error() if self._pause.start() else ""

    async def _explained(self, error: AioRpcError) -> AioRpcError:
        if may_lack_connection(error) and (cause := await self._cause()):
            initial, trailing = error.initial_metadata(), error.trailing_metadata()
            details = details_with(error, cause)
            return AioRpcError(error.code(), initial, trailing, details, error.debug_error_string())
        return add_reason(error)


def _is_cancelled() -> bool:
    """Returns whether the running task was cancelled, and not only the call that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Call:
    """Wraps a grpc.aio call, and adds the reason to its errors."""

    def __init__(self, call: Any, channel: ChannelWithDefaults) -> None:
        self._call = call
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


@grpc.aio.UnaryUnaryCall.register
class _UnaryCall(_Call):
    """A unary call."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self._channel.outcome(self._call).__await__()


@grpc.aio.UnaryStreamCall.register
class _Stream(_Call):
    """A call with streamed responses."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        responses = aiter(self._call)
        while True:
            try:
                yield await self._channel.outcome(anext(responses))
            except StopAsyncIteration:
                return

    async def read(self) -> Any:
        return await self._channel.outcome(self._call.read())
