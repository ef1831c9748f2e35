"""The access log: a line for each ended call, with its caller, method, ids and status code. It counts the calls too.

A watch has a line when it opens, too.
"""

import errno
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import structlog
from google.protobuf import descriptor_pool
from grpc_health.v1 import health

from caseload_server.domain.errors import AccessLogUnavailable, DomainError, InvalidField
from caseload_server.domain.id_formats import UUID_PATTERN, only_ids
from caseload_server.domain.limits import MAX_BATCH_SIZE, MAX_LOGGED_IDS
from caseload_server.observability import audited_ids
from caseload_server.observability.anonymous_lines import AnonymousLines
from caseload_server.observability.log_file import LogFile, LogSink
from caseload_server.security.principal import Principal, current_principal

if TYPE_CHECKING:
    from caseload_server.observability.tracing import CallSpan, Tracing

_log = structlog.get_logger()
_RETRY_SECONDS: Final = 1.0
_COMMA: Final = '","'


class CallMetrics(Protocol):
    """Counts ended calls, and lines that could not be written."""

    def count_lost_line(self) -> None:
        """Counts a line of the access log that could not be written."""

    def counter_for(self, method: str, *, is_stream: bool) -> Callable[[str, DomainError | None, float], None]:
        """Returns the function that counts the ended calls of one method, by code, error and duration in seconds."""


class AccessLog:
    """Writes lines to a sink. When the sink fails, the event log reports the failure once, and the metrics count lines.

    Calls still succeed, unless the log is required. After a failure, a line of its own has the number of lost lines, as
    soon as the sink accepts one.
    """

    def __init__(
        self,
        sink: LogSink,
        metrics: CallMetrics | None = None,
        tracing: "Tracing | None" = None,
        *,
        required: bool = False,
    ) -> None:
        """Args: metrics, counts the calls, or None; tracing, creates their spans, or None; required, whether calls that
        cannot be logged are rejected.
        """
        self.metrics: Final = metrics
        self.tracing: Final = tracing
        self.required: Final = required
        self.anonymous: Final = AnonymousLines(self._write_left_out)
        self._sink = sink
        self._lock = threading.Lock()
        self._lost = 0  # lines since the sink began to fail
        self._reporting = threading.Lock()
        self._closed = threading.Event()

    def write(self, line: str) -> bool:
        """Writes one line, including its newline. Returns whether that succeeded."""
        try:
            self._sink.write(line)
        except OSError as error:
            self._count_lost(error)
            return False
        if self._lost:
            self._report_lost()
        return True

    def check(self) -> None:
        """Raises AccessLogUnavailable while a required log cannot be written. It tries to write a line to find out."""
        if self.required and self._lost and not self._report_lost():
            raise AccessLogUnavailable

    def _count_lost(self, error: OSError) -> None:
        with self._lock:
            self._lost += 1
            is_first = self._lost == 1
        if self.metrics:
            self.metrics.count_lost_line()
        if is_first:
            threading.Thread(target=self._retry, name="access-log-retry", daemon=True).start()
            code = errno.errorcode.get(error.errno or 0, "")
            _log.error("access log write failed", type=type(error).__qualname__, system_error=code)

    def _retry(self) -> None:
        """Tries to report the lost lines until it succeeds, also while there are no calls."""
        while self._lost and not self._closed.wait(_RETRY_SECONDS):
            self._report_lost()

    def _report_lost(self) -> bool:
        """Writes the number of lost lines. Returns whether the sink accepts lines again.

        While another thread does so, that is not known: the write may hang.
        """
        if not self._reporting.acquire(blocking=False):
            return False
        try:
            self._write_lost(self._lost)
        except OSError:
            return False
        finally:
            self._reporting.release()
        return True

    def _write_lost(self, lost: int) -> None:
        if not lost:  # another thread has reported them
            return
        self._sink.write(f'{{"event":"lines_lost","time":"{_timestamp(time.time())}","count":{lost}}}\n')
        with self._lock:
            self._lost -= lost
        _log.warning("access log written again", lost_lines=lost)

    def _write_left_out(self, code: str, count: int) -> None:
        time_text = _timestamp(time.time())
        self.write(f'{{"event":"calls_left_out","time":"{time_text}","code":"{code}","count":{count}}}\n')

    def close(self) -> None:
        """Reports the lines that were left out, and closes the log file, if the sink is one."""
        self._closed.set()
        self.anonymous.report()
        if isinstance(self._sink, LogFile):
            self._sink.close()


class CallRecord:
    """The data of one call that its line is made of."""

    __slots__ = (
        *("context", "error", "on_behalf_of", "peer", "principal", "request", "response"),
        *("seconds", "span", "start", "start_time", "streamed_ids"),
    )

    def __init__(self, context: grpc.ServicerContext, peer: str) -> None:
        self.context = context
        self.peer = peer
        self.start_time = time.time()  # in seconds since 1970
        self.start = time.perf_counter()  # in seconds
        self.seconds = 0.0  # the duration, once the call has ended
        self.principal: Principal | None = None  # None means the current principal
        self.request: Any = None  # None until it is parsed
        self.response: Any = None  # None unless the call succeeded
        self.streamed_ids: dict[str, dict[str, None]] = {}  # the ids that a stream has returned so far, by their kind
        self.error: DomainError | None = None
        self.span: CallSpan | None = None  # None unless calls are traced
        self.on_behalf_of = ""  # the end user whom the caller names


class MethodLog:
    """Writes the lines of one method's calls. A line has ids, and no other value of a request or a record."""

    def __init__(self, log: AccessLog, service: str, method: str) -> None:
        """Args: service, the full name of the service."""
        self.method: Final = f"/{service}/{method}"
        self._write = log.write
        self._admit = log.anonymous.admit
        contract: Any = descriptor_pool.Default().FindMethodByName(f"{service}.{method}")
        request, response = contract.input_type, contract.output_type
        kinds = (
            (kind, audited_ids.request_ids(request, kind), audited_ids.response_ids(response, kind))
            for kind in audited_ids.KINDS
        )
        self._kinds = [(kind, requested, returned) for kind, requested, returned in kinds if requested or returned]
        self._has_request_id = "request_id" in request.fields_by_name
        self._has_validate_only = "validate_only" in request.fields_by_name
        is_stream = contract.server_streaming or contract.client_streaming
        self._count = log.metrics.counter_for(self.method, is_stream=is_stream) if log.metrics else None
        is_traced = log.tracing is not None and service != health.SERVICE_NAME  # probes would outnumber all others
        self._start_span = log.tracing.of_method(service, method) if log.tracing and is_traced else None

    def begin(self, context: grpc.ServicerContext, peer: str, queued_at: float = 0.0) -> CallRecord:
        """Returns the record of a call that begins.

        Args: peer, the address of its connection; queued_at, when it began to wait for a thread, by time.monotonic(),
        or 0 if it did not wait.
        """
        record = CallRecord(context, peer)
        if self._start_span:
            record.span = self._start_span(context, max(0.0, time.monotonic() - queued_at) if queued_at else 0.0)
        return record

    def add_streamed_ids(self, record: CallRecord, response: Any) -> None:
        """Adds the ids in one response of a stream to the call's record."""
        for kind, _, returned in self._kinds:
            ids = record.streamed_ids.setdefault(kind, {})
            if len(ids) <= MAX_LOGGED_IDS:
                ids.update(dict.fromkeys(filter(None, returned.extract(response))))

    def write_opened(self, record: CallRecord) -> bool:
        """Writes the line of a stream that opens. Returns False if the log could not be written."""
        ids = self._audit_fields(record).removesuffix(",")
        return self._write(f'{{"event":"stream_opened",{self._head(record, record.principal)}{ids and ","}{ids}}}\n')

    def write_ended(self, record: CallRecord, code: str) -> bool:
        """Writes the line of an ended call. Returns False if the log could not be written.

        Args: code, the name of the call's status code.
        """
        principal = record.principal or current_principal.get(None)
        record.seconds = time.perf_counter() - record.start
        if not (principal or self._admit(code)):
            return True
        error, trace_field = record.error, ""
        reason_field = f'"reason":"{error.reason}",' if error else ""
        if error and error.cause:
            reason_field += f'"cause":"{error.cause}",'
        if record.span:
            reason, caller = error.reason if error else None, principal.name if principal else ""
            record.span.end(code, reason, caller, record.on_behalf_of)
            trace_field = f'"trace_id":"{record.span.trace_id}",'
        # Formatted without json.dumps, which takes longer than everything else here. No value needs escaping: names of
        # callers, ids, UUIDs and end users match their patterns, and callers do not choose the rest.
        return self._write(
            f'{{"event":"call",{self._head(record, principal)},"code":"{code}",'
            f'{reason_field}{self._audit_fields(record)}{trace_field}"ms":{record.seconds * 1000:.3f}}}\n'
        )

    def count(self, record: CallRecord, code: str) -> None:
        """Counts an ended call, after its line. Args: code, the name of its status code."""
        if self._count:
            with suppress(Exception):  # a failed count must not fail the call
                self._count(code, record.error, record.seconds)

    def _head(self, record: CallRecord, principal: Principal | None) -> str:
        user = f'"on_behalf_of":"{record.on_behalf_of}",' if record.on_behalf_of else ""
        return (
            f'"time":"{_timestamp(record.start_time)}","caller":"{principal.name if principal else ""}",'
            f'{user}"peer":"{record.peer}","method":"{self.method}"'
        )

    def _audit_fields(self, record: CallRecord) -> str:
        """Returns the fields with ids, the request_id and validate_only, each followed by a comma."""
        request, response, fields = record.request, record.response, ""
        # The lists of an invalid request may have any length.
        most = MAX_BATCH_SIZE if isinstance(record.error, InvalidField) else None
        for kind, requested, returned in self._kinds:
            ids = requested.extract(request, most) if request is not None else []
            sent = returned.extract(response) if response is not None else list(record.streamed_ids.get(kind, ()))
            if record.error:
                sent += (name for resource, name in record.error.resources if resource == f"caseload.v1.{kind.title()}")
            if ids != sent:  # else they are the ids of records, which need no check
                ids = [*only_ids(ids), *sent]
            if logged := dict.fromkeys(filter(None, ids)):
                fields += _id_field(kind, logged)
        if self._has_request_id and request is not None and UUID_PATTERN.fullmatch(request.request_id):
            fields += f'"request_id":"{request.request_id.lower()}",'
        if self._has_validate_only and request is not None and request.validate_only:
            fields += '"validate_only":true,'
        return fields


def _id_field(kind: str, ids: Collection[str]) -> str:
    if len(ids) <= MAX_LOGGED_IDS:
        return f'"{kind}_ids":["{_COMMA.join(ids)}"],'
    return f'"{kind}_ids":["{_COMMA.join(islice(ids, MAX_LOGGED_IDS))}"],"{kind}_ids_left_out":true,'


_cached_second: tuple[int, str] = (0, "")


def _timestamp(seconds: float) -> str:
    """Formats seconds since 1970 such as 2026-01-31T12:00:00.123Z. The part down to the second is cached."""
    global _cached_second  # noqa: PLW0603 - the tuple is replaced as a whole, so threads need no lock
    second, text = _cached_second
    since = seconds - second
    if not 0 <= since < 1:
        second = int(seconds)
        text = datetime.fromtimestamp(second, UTC).isoformat()[:19]
        since = seconds - second
        _cached_second = (second, text)
    return f"{text}.{int(since * 1000):03}Z"
