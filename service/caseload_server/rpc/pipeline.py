"""The layer around every call: it takes the bytes of a request and returns bytes or a gRPC status, and nothing else."""

import math
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health
from grpc_status import rpc_status

from caseload_server.domain import errors, limits
from caseload_server.domain.call_deadline import read_deadline
from caseload_server.observability.access_log import AccessLog, CallRecord, MethodLog
from caseload_server.rpc.admission import Admission, Handler, Method
from caseload_server.rpc.grpcio_compat import IncomingCall
from caseload_server.rpc.request_parser import request_parser
from caseload_server.rpc.status_map import CODE_NAMES, retry_pushback, to_status
from caseload_server.security.auth import PUBLIC, Auth, required_permissions
from caseload_server.security.on_behalf_of import set_on_behalf_of
from caseload_server.security.principal import check_authorization, current_principal
from caseload_server.security.redaction import may_read, redact, redact_error
from caseload_server.validation.request_sizes import max_request_bytes

_log = structlog.get_logger()


_SCANS: Final = ("List", "BatchGet")
"""Prefixes of the reads that may return many records. They have threads of their own."""
_BULK_WRITES: Final = ("Batch", "Transfer", "Delete", "Merge")
"""Prefixes of the writes that may change many assignments. They have threads of their own."""
_DISCLOSING: Final = frozenset({"read", "audit"})
"""Permissions of methods whose responses are not redacted: whoever may call them may see what they return."""


class MethodExecutors(NamedTuple):
    """The executors of a service's methods. Each class of calls has its own, so no class can starve another."""

    reads: futures.ThreadPoolExecutor
    scans: futures.ThreadPoolExecutor
    writes: futures.ThreadPoolExecutor
    bulk_writes: futures.ThreadPoolExecutor
    streams: futures.ThreadPoolExecutor

    @classmethod
    def same(cls, unary: futures.ThreadPoolExecutor, streams: futures.ThreadPoolExecutor) -> "MethodExecutors":
        """Returns one executor for all unary methods, and one for the streams."""
        return cls(unary, unary, unary, unary, streams)

    def of(self, service: str, name: str) -> futures.ThreadPoolExecutor:
        """Returns the executor of a unary method. Args: service, its full name."""
        if "write" in required_permissions(service, name):
            return self.bulk_writes if name.startswith(_BULK_WRITES) else self.writes
        return self.scans if name.startswith(_SCANS) else self.reads


class PipelineServer:
    """Wraps each handler once and registers it with a server.

    It makes the handlers from the descriptors. Generated code registers generic handlers, which know no method names,
    so no permission could be required of them.
    """

    def __init__(
        self, server: Any, auth: Auth, log: AccessLog, executors: MethodExecutors, admission: Admission
    ) -> None:
        """Args: server, receives the wrapped handlers; executors, run them; admission, counts their responses."""
        self._server = server
        self._auth = auth
        self._log = log
        self._executors = executors
        self._admission = admission

    def add_service(self, name: str, servicer: Any) -> None:
        """Registers a service by its full name. Raises NotImplementedError where the servicer lacks a method of it."""
        service: Any = descriptor_pool.Default().FindServiceByName(name)
        wrapped = {method.name: self._wrap(method, _behavior(servicer, method)) for method in service.methods}
        self._server.add_registered_method_handlers(name, wrapped)

    def _wrap(self, contract: MethodDescriptor, behavior: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        # The pipeline parses requests itself, because grpcio would answer INTERNAL to one that it cannot parse.
        # It also serializes responses, so that the access log knows how the call ended.
        service, name = contract.containing_service.full_name, contract.name
        permissions = required_permissions(service, name)
        pipeline = _MethodPipeline(self._admission, self._log, service, name, permissions)
        max_bytes = max_request_bytes(contract.input_type)
        parse = request_parser(GetMessageClass(contract.input_type).FromString, max_bytes)
        serialize = GetMessageClass(contract.output_type).SerializeToString
        call: Any
        if contract.server_streaming:
            call = pipeline.stream_call(parse, behavior, serialize, self._auth.rechecker(service, name))
            call.experimental_thread_pool = self._executors.streams
        else:
            call = pipeline.unary_call(parse, behavior, serialize)
            call.experimental_thread_pool = self._executors.of(service, name)
        shed: Callable[[errors.DomainError], Handler] | None = None
        if service == health.SERVICE_NAME:  # answered even under overload, because that costs no more than shedding
            shed = lambda _error: pipeline.reject_health_watch if contract.server_streaming else call  # noqa: E731 - short
        call.method = Method(self._auth.authorizer(service, name), max_bytes, pipeline.refusal, shed)
        return _HANDLERS[contract.client_streaming, contract.server_streaming](call)


_HANDLERS: Final = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether the caller and the server stream."""


def _behavior(servicer: Any, method: MethodDescriptor) -> Any:
    behavior = getattr(servicer, method.name, None)
    if behavior is None or behavior.__module__.endswith("_pb2_grpc"):  # a generated base class answers UNIMPLEMENTED
        raise NotImplementedError(f"{method.full_name} has no handler")
    return behavior


class _MethodPipeline:
    """Parses, runs, serializes and logs the calls of one method. Admission has authorized them."""

    def __init__(
        self, admission: Admission, access_log: AccessLog, service: str, name: str, permissions: tuple[str, ...]
    ) -> None:
        """Args: service and name, of the method; permissions, which its callers need."""
        self._admission = admission
        self._access_log = access_log
        self._log = MethodLog(access_log, service, name)
        self._writes = "write" in permissions
        self._redacts = not _DISCLOSING.issuperset(permissions)
        self._is_public = permissions == PUBLIC
        self._must_log = access_log.required and not self._is_public

    def unary_call(
        self, parse: Callable[[bytes], Any], handler: Any, serialize: Callable[[Any], bytes]
    ) -> Callable[..., bytes]:
        log, admission, may_reject, redacts = self._log, self._admission, not self._writes, self._redacts

        def call(incoming: IncomingCall, context: grpc.ServicerContext) -> bytes:
            record = log.begin(context, incoming.peer, incoming.queued_at)
            if record.span:
                record.span.make_current()
            try:
                record.on_behalf_of = set_on_behalf_of(context)
                read_deadline.set(_deadline(context))
                self._check_log()
                record.request = request = parse(incoming.take_message())
                admission.check_unread(incoming)
                response = handler(request, context)
                if redacts and not may_read():
                    redact(response, request)
                serialized = serialize(response)
                admission.count_answer(incoming, len(serialized), may_reject=may_reject)
                record.response = response
            except errors.DomainError as error:
                record.error = error.with_traceback(None)  # its frames would keep the response in memory
            except Exception as error:  # noqa: BLE001 - this layer turns every unexpected error into INTERNAL
                record.error = _internal_error(log.method, error, record)
            self._finish(record)
            if record.error:
                _abort(context, record.error)
            return serialized

        return call

    def stream_call(
        self,
        parse: Callable[[bytes], Any],
        handler: Any,
        serialize: Callable[[Any], bytes],
        recheck: Callable[[grpc.ServicerContext], Callable[[], None]],
    ) -> Callable[..., Any]:
        """Handles one request or a stream of requests. The access log names the ids of a single request only.

        Args: recheck, returns the check that authorizes an open stream again, before each message.
        """

        def call(incoming: IncomingCall, context: grpc.ServicerContext) -> Iterator[bytes]:
            record, data = self._log.begin(context, incoming.peer), incoming.take_message()
            record.principal = current_principal.get(None)  # an abandoned generator ends outside its context
            is_open = self._is_public or not isinstance(data, bytes)  # only watches have a line when they open
            try:
                record.on_behalf_of = set_on_behalf_of(context)
                _deadline(context)  # of the call; each read of a watch is short
                self._check_log()
                record.request = parse(data) if isinstance(data, bytes) else None
                authorize = recheck(context)
                check_authorization.set(authorize)
                for response in handler(record.request or _parse_stream(parse, data, incoming), context):
                    if self._redacts and not may_read():
                        redact(response, record.request)
                    authorize()
                    self._check_log()
                    if not is_open:
                        self._log_opened(record)
                        is_open = True
                    self._log.add_streamed_ids(record, response)
                    self._admission.answered(incoming)
                    yield serialize(response)
                    incoming.stalls_at = math.inf
            except errors.DomainError as error:
                record.error = error.with_traceback(None)  # its frames would keep the response in memory
            except Exception as error:  # noqa: BLE001 - as above
                record.error = _internal_error(self._log.method, error, record)
            finally:  # also when the caller has disconnected and grpcio abandons this generator
                self._finish(record)
            if record.error:
                _abort(context, record.error)

        return call

    def _check_log(self) -> None:
        """Raises AccessLogUnavailable if the call must be logged and cannot be."""
        if not self._is_public:
            self._access_log.check()

    def _log_opened(self, record: CallRecord) -> None:
        if not self._log.write_opened(record) and self._access_log.required:
            raise errors.AccessLogUnavailable

    def _finish(self, record: CallRecord) -> None:
        """Logs and counts an ended call. Withholds a response or an error that could not be logged."""
        code = _code_name(record)
        if not self._log.write_ended(record, code) and self._must_withhold(record):
            record.error = errors.AccessLogUnavailable()
            code = _code_name(record)
        self._log.count(record, code)

    def _must_withhold(self, record: CallRecord) -> bool:
        """Returns whether the outcome must not be sent without a line.

        The outcome of a write is sent: it may have committed, and the change log has it then. A call that was rejected
        before its request was read returns nothing about records.
        """
        has_outcome = record.response is not None or record.error is not None
        if not (self._must_log and has_outcome) or record.request is None:
            return False
        return not self._writes or bool(record.request.validate_only)

    def refusal(self, error: errors.DomainError) -> Handler:
        """Returns the handler that rejects a call before its request is read."""

        def refuse(incoming: IncomingCall, context: grpc.ServicerContext) -> NoReturn:
            record = self._log.begin(context, incoming.peer, incoming.queued_at)
            record.error = error
            with suppress(errors.InvalidField):  # the other error is the first one
                record.on_behalf_of = set_on_behalf_of(context)
            self._finish(record)
            _abort(context, error)

        return refuse

    def reject_health_watch(self, incoming: IncomingCall, context: grpc.ServicerContext) -> NoReturn:
        """Rejects a health watch above the limit.

        On UNIMPLEMENTED, client libraries assume that the server has no health service, and keep sending calls to it.
        On any other code they would stop. https://github.com/grpc/grpc/blob/master/doc/health-checking.md
        """
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        record = self._log.begin(context, incoming.peer)
        self._finish(record)
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "This server has reached its limit of open health watches.")
        raise AssertionError  # abort has raised


def _code_name(record: CallRecord) -> str:
    error, context = record.error, record.context
    if error:
        return CODE_NAMES[error.reason]
    if not context.is_active():
        return "CANCELLED"  # by the caller, its deadline, or a server stop
    # The services of the grpc library set the code on the context.
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]
    return code.name if code else "OK"


def _deadline(context: grpc.ServicerContext) -> float:
    """Returns the time.monotonic() at which the reads of a call end. Raises DeadlineExceeded after its deadline."""
    seconds = context.time_remaining()
    if seconds == 0:
        raise errors.DeadlineExceeded
    return time.monotonic() + min(seconds, limits.MAX_READ_SECONDS)


def _parse_stream(parse: Callable[[bytes], Any], stream: Any, incoming: IncomingCall) -> Iterator[Any]:
    """Yields the requests of a stream, each of which must arrive in time."""
    incoming.stalls_at = time.monotonic() + limits.MESSAGE_TIMEOUT_SECONDS
    with suppress(grpc.RpcError):  # the caller has disconnected
        for data in stream:
            incoming.stalls_at = math.inf
            yield parse(data)
            incoming.stalls_at = time.monotonic() + limits.STREAM_IDLE_SECONDS


def _abort(context: grpc.ServicerContext, error: errors.DomainError) -> NoReturn:
    if not may_read():
        redact_error(error)
    status: Any = rpc_status.to_status(to_status(error))
    context.abort_with_status(status._replace(trailing_metadata=(*status.trailing_metadata, *retry_pushback(error))))
    raise AssertionError  # abort_with_status has raised


def _internal_error(method: str, error: Exception, record: CallRecord) -> errors.Internal:
    """Logs the type and the source line of an unexpected error, but not its text, which may quote patient data."""
    error_id = uuid.uuid4().hex
    frame = traceback.extract_tb(error.__traceback__)[-1]
    location = f"{Path(frame.filename).name}:{frame.lineno}"
    sqlstate = getattr(error, "sqlstate", None)
    state = {"sqlstate": sqlstate} if sqlstate else {}
    kind = type(error).__qualname__
    if record.span:
        record.span.add_exception(kind)
        state["trace_id"] = record.span.trace_id
    _log.error("call failed", error_id=error_id, method=method, type=kind, location=location, **state)
    return errors.Internal(error_id=error_id)
