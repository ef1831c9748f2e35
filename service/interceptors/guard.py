"""The outermost layer of a call: bytes in, a response or a status out, and nothing else gets past it."""

import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from service import errors
from service.interceptors.statuses import status

_log = structlog.get_logger()


class GuardedServer:
    """Passes a servicer's handlers on to a server, each wrapped once.

    The generated add_...Servicer_to_server functions take it for the server.
    """

    def __init__(self, server: grpc.Server, streams: futures.ThreadPoolExecutor) -> None:
        """Args: server, which the handlers end up in; streams, the threads of the streaming ones."""
        self._server = server
        self._streams = streams

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: the registered handlers below are the same ones."""

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Registers the handlers of one service."""
        guarded = {name: self._guarded(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, guarded)

    def _guarded(self, method: str, handler: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        # Parsing stays with us: what grpcio cannot parse it refuses by itself, as INTERNAL.
        if handler.unary_unary:
            call = _unary(method, handler.request_deserializer, handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)
        call = _stream(method, handler.request_deserializer, handler.unary_stream)
        # A stream keeps its thread for as long as it lives: it must not take one that calls wait for.
        call.experimental_thread_pool = self._streams  # type: ignore[attr-defined]
        return grpc.unary_stream_rpc_method_handler(call, None, handler.response_serializer)


def _unary(method: str, parse: Callable[[bytes], Any], answer: Callable[..., Any]) -> Callable[..., Any]:
    def call(data: bytes, context: grpc.ServicerContext) -> Any:
        try:
            return answer(_request(parse, data, context), context)
        except errors.DomainError as error:
            refusal = error
        except Exception as error:  # noqa: BLE001 - the layer that turns the unexpected into INTERNAL
            refusal = _unexpected(method, error)
        _refuse(context, refusal)

    return call


def _stream(method: str, parse: Callable[[bytes], Any], answer: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    def call(data: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
        refusal: errors.DomainError | None = None
        try:
            yield from answer(_request(parse, data, context), context)
        except errors.DomainError as error:
            refusal = error
        except Exception as error:  # noqa: BLE001 - as above
            refusal = _unexpected(method, error)
        if refusal:
            _refuse(context, refusal)

    return call


def _request(parse: Callable[[bytes], Any], data: bytes, context: grpc.ServicerContext) -> Any:
    if context.time_remaining() == 0:
        raise errors.DeadlineExceeded
    try:
        return parse(data)
    except DecodeError:
        raise errors.InvalidField(errors.Violation("", "does not parse as this method's request message")) from None


def _refuse(context: grpc.ServicerContext, error: errors.DomainError) -> NoReturn:
    context.abort_with_status(rpc_status.to_status(status(error)))
    raise AssertionError  # abort_with_status has raised


def _unexpected(method: str, error: Exception) -> errors.Internal:
    """Logs where a defect showed, and never its text: that may quote a patient's data."""
    error_id = uuid.uuid4().hex
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    _log.error("call failed", error_id=error_id, method=method, type=type(error).__qualname__, place=place)
    return errors.Internal(error_id=error_id)
