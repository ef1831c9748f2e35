"""Defaults for every call that does not set them itself: a deadline, a request_id and the caller's key."""

import uuid
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pool

Serialize = Callable[[Any], bytes]
PrepareRequest = Callable[[Any], Any]
Metadata = Sequence[tuple[str, str]]


class ChannelWithDefaults:
    """Wraps a channel. Stubs built on it get methods that apply the defaults."""

    def __init__(self, channel: grpc.Channel, timeout: float, metadata: Metadata, closed: Event) -> None:
        """Wraps a channel.

        Args:
            channel: the channel that carries the calls.
            timeout: the deadline of each unary call, in seconds.
            metadata: sent with every call.
            closed: once it is set, every new call raises ValueError.
        """
        self._channel: Final[Any] = channel
        self._timeout = timeout
        self._metadata = metadata
        self._closed = closed

    def unary_unary(self, method: str, request_serializer: Serialize, **rest: Any) -> "_MultiCallable":
        """The method of grpc.Channel, with the defaults."""
        service, _, name = method.removeprefix("/").partition("/")
        request: Any = descriptor_pool.Default().FindMethodByName(f"{service}.{name}").input_type
        prepare = _with_request_id if "request_id" in request.fields_by_name else _unchanged
        callable_ = self._channel.unary_unary(method, request_serializer, **rest)
        return _MultiCallable(callable_, self._timeout, self._metadata, prepare, self._closed)

    def unary_stream(self, method: str, request_serializer: Serialize, **rest: Any) -> "_MultiCallable":
        """The method of grpc.Channel, with the defaults but without a deadline: a watch does not end by itself."""
        callable_ = self._channel.unary_stream(method, request_serializer, **rest)
        return _MultiCallable(callable_, None, self._metadata, _unchanged, self._closed)


class _MultiCallable:
    """A stub's method: grpc.UnaryUnaryMultiCallable or grpc.UnaryStreamMultiCallable with the defaults."""

    def __init__(
        self, callable_: Any, timeout: float | None, metadata: Metadata, prepare: PrepareRequest, closed: Event
    ) -> None:
        self._callable = callable_
        self._prepare = prepare
        self._closed = closed
        self._timeout = timeout
        self._metadata = metadata

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *rest: Any, **named: Any
    ) -> Any:
        return self._callable(self._prepare(request), *self._defaults(timeout, metadata), *rest, **named)

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *rest: Any, **named: Any
    ) -> Any:
        return self._callable.with_call(self._prepare(request), *self._defaults(timeout, metadata), *rest, **named)

    def future(self, request: Any, timeout: float | None = None, metadata: Any = None, *rest: Any, **named: Any) -> Any:
        return self._callable.future(self._prepare(request), *self._defaults(timeout, metadata), *rest, **named)

    def _defaults(self, timeout: float | None, metadata: Any) -> tuple[float | None, Metadata]:
        if self._closed.is_set():  # with interceptors, grpc itself would crash the process
            raise ValueError("the client is closed")
        return self._timeout if timeout is None else timeout, (*self._metadata, *(metadata or ()))


def _unchanged(request: Any) -> Any:
    return request


def _with_request_id(request: Any) -> Any:
    # This runs before the application's interceptors, so an interceptor that retries sends the same id. A copy gets the
    # id: in the caller's own message it would make the next call with that message look like a repeat.
    if request.request_id:
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.request_id = str(uuid.uuid4())
    return copy
