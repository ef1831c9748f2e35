"""Traces with OpenTelemetry: a span for each call, as a child of the caller's span, and spans for its store operations.

The standard OTEL_* variables configure it; `config.wants_traces` says when it is on. Only then is this module imported.
No attribute holds a value or an id of a request, a response or a record, nor the text of an exception.
Names follow the semantic conventions 1.37.0: https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from opentelemetry import context as otel_context
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AnyValue

from caseload_server.config import SettingError
from caseload_server.store.backends.protocol import StoreMetrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

_log = structlog.get_logger()

_SCHEMA: Final = "https://opentelemetry.io/schemas/1.37.0"
_FLUSH_SECONDS: Final = 3.0
"""How long a stop waits until the collector has taken the last spans, in seconds."""
_TRACEPARENT: Final = "traceparent"
"""https://www.w3.org/TR/trace-context/#traceparent-header"""
_SILENT: Final = logging.NullHandler()
"""Without it, the library would write to standard error."""
_NOT_ERRORS: Final = ("OK", "CANCELLED")
"""Status codes of calls that were not rejected. The caller ended a CANCELLED call, for example a watch."""


class CallSpan:
    """The span of one call."""

    __slots__ = ("_span", "trace_id")

    def __init__(self, span: Span) -> None:
        self._span = span
        self.trace_id: Final = format_trace_id(span.get_span_context().trace_id)
        """32 hexadecimal digits."""

    def make_current(self) -> None:
        """Makes it the parent of the spans of store operations. grpcio runs each call in a context of its own."""
        if self._span.is_recording():
            otel_context.attach(set_span_in_context(self._span))

    def add_exception(self, exception_type: str) -> None:
        """Records an unexpected exception by the name of its class, because its text may quote patient data."""
        self._span.add_event("exception", {"exception.type": exception_type})

    def end(self, code: str, reason: str | None, caller: str, on_behalf_of: str) -> None:
        """Ends the span.

        Args: code, the name of the status code; reason, of an error; caller, empty if it is not known; on_behalf_of,
        the id of the end user, empty if the caller names none.
        """
        span = self._span
        if span.is_recording():
            span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
            if caller:
                span.set_attribute("caseload.caller", caller)
            if on_behalf_of:
                span.set_attribute("enduser.pseudo.id", on_behalf_of)
            if code not in _NOT_ERRORS:
                span.set_attribute("error.type", reason or code)
                span.set_status(Status(StatusCode.ERROR, reason or code))
        span.end()


class Tracing:
    """Creates the spans of one process and exports them."""

    def __init__(self, database: str) -> None:
        """Starts the exporter's thread. Args: database, the value of db.system.name.

        Raises SettingError if the OTEL_* variables cannot be used.
        """
        with _strictly():
            self._exporter = _LoggingExporter(_exporter())
            self._processor = BatchSpanProcessor(self._exporter)
            provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("caseload-server", version("caseload-server"), _SCHEMA)
        self._propagator = TraceContextTextMapPropagator()
        self._store_attributes: dict[str, AnyValue] = {"db.system.name": database}
        self._of_thread = threading.local()
        """What is known of the store operation that this thread is about to end: `cause` and `commit`."""
        self.store: Final = StoreMetrics(
            read=lambda seconds: self._end_store_span("store.read", seconds),
            write=lambda seconds: self._end_store_span("store.write", seconds),
            commit=lambda _writes, _seconds: None,
            failure=lambda cause: setattr(self._of_thread, "cause", cause),
            own_commit=lambda *commit: setattr(self._of_thread, "commit", commit),
        )

    def of_method(self, service: str, name: str) -> Callable[[grpc.ServicerContext, float], CallSpan]:
        """Returns the function that starts the span of a call of one method.

        The function takes the context of the call, and the time that the call has waited for a thread, in seconds.
        """
        full_name, tracer = f"{service}/{name}", self._tracer
        constant: dict[str, AnyValue] = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}

        def start(context: grpc.ServicerContext, waited_seconds: float) -> CallSpan:
            started = time.time_ns() - int(waited_seconds * 1e9)
            span = tracer.start_span(full_name, self._parent(context), SpanKind.SERVER, constant, start_time=started)
            span.set_attribute("caseload.queue.seconds", round(waited_seconds, 6))
            return CallSpan(span)

        return start

    def shutdown(self) -> None:
        """Exports the remaining spans, and stops. It waits a few seconds at most for the collector."""
        flushing = threading.Thread(target=self._processor.shutdown, name="trace-flush", daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)
        if flushing.is_alive():
            self._exporter.report_failure()
        self._exporter.shutdown()  # ends an attempt in progress

    def _parent(self, context: grpc.ServicerContext) -> otel_context.Context:
        """Returns the caller's span as a context; an empty one without a valid traceparent.

        Other metadata, such as tracestate, is ignored, because it would leave the server with the spans.
        """
        nothing = otel_context.Context()
        for name, value in context.invocation_metadata():
            if name == _TRACEPARENT:
                return self._propagator.extract({name: str(value)}, nothing)
        return nothing

    def _end_store_span(self, name: str, seconds: float) -> None:
        """Adds the span of a store operation that ends now, as a child of the current call's."""
        cause, commit = self._of_thread.__dict__.pop("cause", None), self._of_thread.__dict__.pop("commit", None)
        if not get_current_span().is_recording():
            return
        now = time.time_ns()
        span = self._tracer.start_span(name, attributes=self._store_attributes, start_time=now - int(seconds * 1e9))
        if cause:
            span.set_attribute("error.type", cause)
            span.set_status(Status(StatusCode.ERROR, cause))
        if commit:
            self._add_commit_span(span, now, *commit)
        span.end(now)

    def _add_commit_span(self, write: Span, now: int, writes: int, seconds: float, since_end: float) -> None:
        ended = now - int(since_end * 1e9)
        attributes: dict[str, AnyValue] = {**self._store_attributes, "caseload.commit.writes": writes}
        parent, started = set_span_in_context(write), ended - int(seconds * 1e9)
        self._tracer.start_span("store.commit", parent, attributes=attributes, start_time=started).end(ended)


class _LoggingExporter(SpanExporter):
    """Logs once when the collector stops taking spans. The library would log each attempt, with addresses."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False

    def export(self, spans: "Sequence[ReadableSpan]") -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception:  # noqa: BLE001 - of the transport; the spans are lost
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._failing = False
        else:
            self.report_failure()
        return result

    def report_failure(self) -> None:
        """Logs that spans are lost, unless it has done so since the last success."""
        if not self._failing:
            self._failing = True
            _log.warning("trace export failed")

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _exporter() -> SpanExporter:
    """Returns the OTLP exporter for OTEL_EXPORTER_OTLP_PROTOCOL; gRPC by default, as in OpenTelemetry's own."""
    protocol = os.environ.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL) or os.environ.get(OTEL_EXPORTER_OTLP_PROTOCOL)
    exporter: Any
    if protocol in (None, "", "grpc"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as exporter  # noqa: N813
    elif protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as exporter  # noqa: N813
    else:
        raise SettingError(OTEL_EXPORTER_OTLP_PROTOCOL, "must be grpc or http/protobuf")
    made: SpanExporter = exporter()
    return made


def _resource() -> Resource:
    """Returns the attributes of this process. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override them."""
    ours: dict[str, AnyValue] = {
        "service.name": "caseload",
        "service.version": version("caseload-server"),
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
    }
    return Resource(ours).merge(OTELResourceDetector().detect())


class _Warnings(logging.Handler):
    """Counts the log records of the library and drops them: they contain addresses and values of settings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, _record: logging.LogRecord) -> None:
        self.count += 1


@contextmanager
def _strictly() -> Iterator[None]:
    """Raises SettingError where the library would log that it ignores the value of a variable."""
    logger, warnings = logging.getLogger("opentelemetry"), _Warnings()
    logger.addHandler(warnings)
    try:
        yield
    except (ValueError, RuntimeError):
        warnings.count += 1
    finally:
        logger.removeHandler(warnings)
    logger.addHandler(_SILENT)
    if warnings.count:
        raise SettingError("OTEL_*", "a variable has a value that OpenTelemetry cannot use")
