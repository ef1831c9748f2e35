"""The outermost layer of a call: bytes in, a response or a status out, and nothing else gets past it."""

import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health
from grpc_status import rpc_status

from caseload_server.domain import errors
from caseload_server.observability.access_log import AccessLog, CallRecord, MethodLog
from caseload_server.rpc.retry_delays import RetryDelays
from caseload_server.rpc.status_map import pushback, status
from caseload_server.security.auth import Auth, permission
from caseload_server.security.principal import current

_log = structlog.get_logger()


class MethodExecutors(NamedTuple):
    """The threads of each class of calls, so that none can take them from another."""

    reads: futures.ThreadPoolExecutor
    writes: futures.ThreadPoolExecutor
    streams: futures.ThreadPoolExecutor


class PipelineServer:
    """Passes a servicer's handlers on to a server, each wrapped once.

    The generated add_...Servicer_to_server functions take it for the server.
    """

    def __init__(
        self, server: Any, auth: Auth, log: AccessLog, executors: MethodExecutors, retry_delays: RetryDelays
    ) -> None:
        """Args: server, which the handlers end up in; executors, the threads that they run in."""
        self._server = server
        self._auth = auth
        self._log = log
        self._executors = executors
        self._retry_delays = retry_delays

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: the registered handlers below are the same ones."""

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Registers the handlers of one service."""
        wrapped = {name: self._wrapped(service, name, handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, wrapped)

    def _wrapped(self, service: str, name: str, handler: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        # Parsing stays with us: what grpcio cannot parse it refuses by itself, as INTERNAL. So does writing: then the
        # access log knows how a call ended.
        pipeline = _MethodPipeline(self._auth.for_method(service, name), MethodLog(self._log, service, name))
        parse, write = handler.request_deserializer, handler.response_serializer
        call: Any
        if handler.unary_unary:
            call = pipeline.unary(parse, handler.unary_unary, write)
            writes = permission(service, name) == "write"
            call.experimental_thread_pool = self._executors.writes if writes else self._executors.reads
        else:
            call = pipeline.stream(parse, handler.unary_stream or handler.stream_stream, write)
            call.experimental_thread_pool = self._executors.streams
        if service != health.SERVICE_NAME:
            call.shed = pipeline.shedding(self._retry_delays)
        else:  # a check is answered where it would be refused: it needs no more than a refusal does
            call.shed = call if handler.unary_unary else pipeline.leave_unwatched
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(call)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(call)
        return grpc.stream_stream_rpc_method_handler(call)


class _MethodPipeline:
    """What lies around every call of one method, whatever its kind."""

    def __init__(self, authorize: Callable[[grpc.ServicerContext], None], log: MethodLog) -> None:
        self._authorize = authorize
        self._log = log

    def unary(self, parse: Callable[[bytes], Any], answer: Any, write: Callable[[Any], bytes]) -> Callable[..., bytes]:
        authorize, log = self._authorize, self._log

        def call(data: bytes, context: grpc.ServicerContext) -> bytes:
            record = CallRecord(context)
            try:
                authorize(context)
                _check_deadline(context)
                record.request = request = _parsed(parse, data)
                response = answer(request, context)
                written = write(response)
                record.response = response
            except errors.DomainError as error:
                record.refusal = error
            except Exception as error:  # noqa: BLE001 - the layer that turns the unexpected into INTERNAL
                record.refusal = _unexpected(log.method, error)
            log.end(record)
            if record.refusal:
                _refuse(context, record.refusal)
            return written

        return call

    def stream(self, parse: Callable[[bytes], Any], answer: Any, write: Callable[[Any], bytes]) -> Callable[..., Any]:
        """Of one request, or of a stream of them, which then are not named in the log."""

        def call(data: bytes | Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            record = CallRecord(context)
            try:
                self._authorize(context)
                record.caller = current.get(None)  # a generator that is dropped ends outside its context
                _check_deadline(context)
                record.request = _parsed(parse, data) if isinstance(data, bytes) else None
                for response in answer(record.request or _each_parsed(parse, data), context):
                    self._log.add_streamed_ids(record, response)
                    yield write(response)
            except errors.DomainError as error:
                record.refusal = error
            except Exception as error:  # noqa: BLE001 - as above
                record.refusal = _unexpected(self._log.method, error)
            finally:  # also where the caller is gone, and nothing more is asked of this generator
                self._log.end(record)
            if record.refusal:
                _refuse(context, record.refusal)

        return call

    def shedding(self, retry_delays: RetryDelays) -> Callable[..., NoReturn]:
        """In the place of the call where there are too many: looks at nothing, and says nothing but that."""

        def shed(_data: bytes | Iterator[bytes], context: grpc.ServicerContext) -> NoReturn:
            record = CallRecord(context)
            record.refusal = errors.Overloaded(retry_delays.next_seconds())
            self._log.end(record)
            _refuse(context, record.refusal)

        return shed

    def leave_unwatched(self, _data: bytes, context: grpc.ServicerContext) -> NoReturn:
        """Callers' libraries take it for a server that cannot be watched, and call it; else they would not."""
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        self._log.end(CallRecord(context))
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "As many health watches are open as there may be.")
        raise AssertionError  # abort has raised


def _check_deadline(context: grpc.ServicerContext) -> None:
    if context.time_remaining() == 0:
        raise errors.DeadlineExceeded


def _parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        raise errors.InvalidField(errors.Violation("", "does not parse as this method's request message")) from None


def _each_parsed(parse: Callable[[bytes], Any], stream: Any) -> Iterator[Any]:
    with suppress(grpc.RpcError):  # the caller is gone
        for data in stream:
            yield _parsed(parse, data)


def _refuse(context: grpc.ServicerContext, error: errors.DomainError) -> NoReturn:
    told: Any = rpc_status.to_status(status(error))
    context.abort_with_status(told._replace(trailing_metadata=(*told.trailing_metadata, *pushback(error))))
    raise AssertionError  # abort_with_status has raised


def _unexpected(method: str, error: Exception) -> errors.Internal:
    """Logs where a defect showed, and never its text: that may quote a patient's data."""
    error_id = uuid.uuid4().hex
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    _log.error("call failed", error_id=error_id, method=method, type=type(error).__qualname__, place=place)
    return errors.Internal(error_id=error_id)
