"""The access log: a line for each ended call, with its caller, method, ids and status code. It counts the calls too."""

import os
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import structlog
from google.protobuf import descriptor_pool
from grpc_health.v1 import health

from caseload_server.domain.errors import DomainError, InvalidField
from caseload_server.domain.id_formats import UUID_PATTERN, only_ids
from caseload_server.domain.limits import MAX_BATCH_SIZE, MAX_LOGGED_IDS
from caseload_server.observability import audited_ids
from caseload_server.observability.anonymous_lines import AnonymousLines
from caseload_server.security.principal import Principal, current_principal

if TYPE_CHECKING:
    from caseload_server.observability.tracing import CallSpan, Tracing

_log = structlog.get_logger()
_CHECK_INTERVAL_SECONDS: Final = 1.0
"""The log file's path is checked for a moved file at most this often."""
_COMMA: Final = '","'


class LogSink(Protocol):
    """Writes whole lines, from any thread."""

    def write(self, line: str, /) -> Any:
        """Writes one line, including its newline. Raises OSError."""


class LogFile:
    """Appends lines to a file. When the file is moved away, it creates a new one at the same path within a second."""

    def __init__(self, path: Path) -> None:
        """Opens the file. Raises OSError."""
        self._path = path
        self._file = -1
        self._next_check = 0.0
        self._lock = threading.Lock()  # the file must not be closed while another thread writes
        self._open()

    def write(self, line: str) -> None:
        """Appends one line. A single write(2) keeps the lines of several processes apart. Raises OSError."""
        data = line.encode()
        with self._lock:
            if time.monotonic() >= self._next_check:
                with suppress(OSError):  # the open file still accepts lines
                    self._reopen_if_moved()
            while data:
                data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Closes the file. A later write fails, and cannot reach another file that reuses the descriptor's number."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._next_check = time.monotonic() + _CHECK_INTERVAL_SECONDS

    def _reopen_if_moved(self) -> None:
        self._next_check = time.monotonic() + _CHECK_INTERVAL_SECONDS
        with suppress(FileNotFoundError):
            if os.path.samestat(self._path.stat(), os.fstat(self._file)):
                return
        previous = self._file
        self._open()
        os.close(previous)


class CallMetrics(Protocol):
    """Counts ended calls."""

    def counter_for(self, method: str, *, is_stream: bool) -> Callable[[str, str | None, float], None]:
        """Returns the function that counts the ended calls of one method, by code, reason and duration in seconds."""


class AccessLog:
    """Writes lines to a sink. When the sink fails, calls still succeed, and the event log reports the failure once."""

    def __init__(self, sink: LogSink, metrics: CallMetrics | None = None, tracing: "Tracing | None" = None) -> None:
        """Args: metrics, also counts the calls; None for no counts; tracing, also makes spans; None for none."""
        self.metrics: Final = metrics
        self.tracing: Final = tracing
        self.anonymous: Final = AnonymousLines(self._write_left_out)
        self._sink = sink
        self._failing = False

    def write(self, line: str) -> None:
        """Writes one line, including its newline."""
        try:
            self._sink.write(line)
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._failing = True
                _log.error("access log write failed", type=type(error).__qualname__)

    def _write_left_out(self, code: str, count: int) -> None:
        time_text = _timestamp(time.time())
        self.write(f'{{"event":"calls_left_out","time":"{time_text}","code":"{code}","count":{count}}}\n')

    def close(self) -> None:
        """Reports the lines that were left out, and closes the log file, if the sink is one."""
        self.anonymous.report()
        if isinstance(self._sink, LogFile):
            self._sink.close()


class CallRecord:
    """The data of one call that its line is made of."""

    __slots__ = (
        *("context", "error", "on_behalf_of", "principal", "request", "response"),
        *("span", "start", "start_time", "streamed_ids"),
    )

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.context = context
        self.start_time = time.time()  # in seconds since 1970
        self.start = time.perf_counter()  # in seconds
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

    def begin(self, context: grpc.ServicerContext, queued_at: float = 0.0) -> CallRecord:
        """Returns the record of a call that begins.

        Args: queued_at, when it began to wait for a thread, by time.monotonic(); 0 if it did not wait.
        """
        record = CallRecord(context)
        if self._start_span:
            record.span = self._start_span(context, max(0.0, time.monotonic() - queued_at) if queued_at else 0.0)
        return record

    def add_streamed_ids(self, record: CallRecord, response: Any) -> None:
        """Adds the ids in one response of a stream to the call's record."""
        for kind, _, returned in self._kinds:
            ids = record.streamed_ids.setdefault(kind, {})
            if len(ids) <= MAX_LOGGED_IDS:
                ids.update(dict.fromkeys(filter(None, returned.extract(response))))

    def finish(self, record: CallRecord, code: str) -> None:
        """Writes the line of an ended call, and counts the call. Args: code, the name of its status code."""
        principal = record.principal or current_principal.get(None)
        caller = principal.name if principal else ""
        seconds = time.perf_counter() - record.start
        reason = record.error.reason if record.error else None
        reason_field = f'"reason":"{reason}",' if reason else ""
        if record.error and record.error.cause:
            reason_field += f'"cause":"{record.error.cause}",'
        user_field = f'"on_behalf_of":"{record.on_behalf_of}",' if record.on_behalf_of else ""
        if self._count:
            with suppress(Exception):  # a failed count must not fail the call
                self._count(code, reason, seconds)
        if not (principal or self._admit(code)):
            return
        trace_field = ""
        if record.span:
            record.span.end(code, reason, caller, record.on_behalf_of)
            trace_field = f'"trace_id":"{record.span.trace_id}",'
        # Formatted without json.dumps, which takes longer than everything else here. No value needs escaping: principal
        # names are from the keys file; ids, UUIDs and end users match their patterns; callers do not choose the rest.
        self._write(
            f'{{"event":"call","time":"{_timestamp(record.start_time)}","caller":"{caller}",'
            f'{user_field}"peer":"{record.context.peer()}","method":"{self.method}","code":"{code}",'
            f'{reason_field}{self._audit_fields(record)}{trace_field}"ms":{seconds * 1000:.3f}}}\n'
        )

    def _audit_fields(self, record: CallRecord) -> str:
        """Returns the fields with ids, the request_id and validate_only, each followed by a comma."""
        request, response, fields = record.request, record.response, ""
        # The lists of an invalid request may have any length.
        most = MAX_BATCH_SIZE if isinstance(record.error, InvalidField) else None
        for kind, requested, returned in self._kinds:
            ids = requested.extract(request, most) if request is not None else []
            sent = returned.extract(response) if response is not None else list(record.streamed_ids.get(kind, ()))
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
