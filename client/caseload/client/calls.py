"""What every call is given that its caller did not: a deadline, a request_id, the key."""

import uuid
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pool

Serialize = Callable[[Any], bytes]
Fill = Callable[[Any], Any]
Metadata = Sequence[tuple[str, str]]


class Calls:
    """Stands for the channel where stubs are made; the methods they get have these defaults."""

    def __init__(self, channel: grpc.Channel, timeout: float, metadata: Metadata, closed: Event) -> None:
        """Args: timeout, in seconds, of each unary call; metadata, of each call; closed, it no longer calls."""
        self._channel: Final[Any] = channel
        self._timeout = timeout
        self._metadata = metadata
        self._closed = closed

    def unary_unary(self, method: str, request_serializer: Serialize, **rest: Any) -> "_Method":
        """As that of a channel."""
        service, _, name = method.removeprefix("/").partition("/")
        request: Any = descriptor_pool.Default().FindMethodByName(f"{service}.{name}").input_type
        fill = _with_request_id if "request_id" in request.fields_by_name else _as_it_is
        made = self._channel.unary_unary(method, request_serializer, **rest)
        return _Method(made, self._timeout, self._metadata, fill, self._closed)

    def unary_stream(self, method: str, request_serializer: Serialize, **rest: Any) -> "_Method":
        """As that of a channel. A watch has no deadline: it does not end by itself."""
        made = self._channel.unary_stream(method, request_serializer, **rest)
        return _Method(made, None, self._metadata, _as_it_is, self._closed)


class _Method:
    """A method of a stub, as grpc.UnaryUnaryMultiCallable and grpc.UnaryStreamMultiCallable say."""

    def __init__(self, method: Any, timeout: float | None, metadata: Metadata, fill: Fill, closed: Event) -> None:
        self._method = method
        self._fill = fill
        self._closed = closed
        self._timeout = timeout
        self._metadata = metadata

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *rest: Any, **named: Any
    ) -> Any:
        return self._method(self._fill(request), *self._filled(timeout, metadata), *rest, **named)

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: Any = None, *rest: Any, **named: Any
    ) -> Any:
        return self._method.with_call(self._fill(request), *self._filled(timeout, metadata), *rest, **named)

    def future(self, request: Any, timeout: float | None = None, metadata: Any = None, *rest: Any, **named: Any) -> Any:
        return self._method.future(self._fill(request), *self._filled(timeout, metadata), *rest, **named)

    def _filled(self, timeout: float | None, metadata: Any) -> tuple[float | None, Metadata]:
        if self._closed.is_set():  # with interceptors, grpc itself would crash the process
            raise ValueError("closed")
        return self._timeout if timeout is None else timeout, (*self._metadata, *(metadata or ()))


def _as_it_is(request: Any) -> Any:
    return request


def _with_request_id(request: Any) -> Any:
    # Above the caller's interceptors, so that one that calls again sends the same. In a copy: were the id put into the
    # caller's message, the next call with it would be taken for a repeat.
    if request.request_id:
        return request
    named = type(request)()
    named.CopyFrom(request)
    named.request_id = str(uuid.uuid4())
    return named
