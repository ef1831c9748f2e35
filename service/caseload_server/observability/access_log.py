"""The end of a call: its line in the access log (who asked what, when, of whom, and how it ended), and its count."""

import os
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.rpc.code_pb2 import Code

from caseload_server.domain.errors import DomainError
from caseload_server.domain.limits import MAX_LOGGED_IDS
from caseload_server.observability import audited_ids
from caseload_server.rpc.status_map import CODES
from caseload_server.security.principal import Principal, current
from caseload_server.validation.rules import ID, UUID

_log = structlog.get_logger()
_LOOK_SECONDS: Final = 1.0
_CODE_NAMES: Final[dict[str, str]] = {reason: Code.Name(code) for reason, code in CODES.items()}
_COMMA: Final = '","'


class LogSink(Protocol):
    """Takes whole lines, from any thread."""

    def write(self, line: str, /) -> Any:
        """Writes one line, its end included. Raises OSError."""


class LogFile:
    """A file that lines are appended to. Once it was moved away, another is made at its name, within a second."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._file = -1
        self._due = 0.0
        self._lock = threading.Lock()  # the file must not be closed while another thread writes
        self._open()

    def write(self, line: str) -> None:
        """One write(2), so that the lines of several processes do not mix either."""
        data = line.encode()
        with self._lock:
            if time.monotonic() >= self._due:
                with suppress(OSError):  # the file there is still takes lines
                    self._reopen()
            while data:
                data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """The last thing; a line that comes later finds no file, and none that took its number."""
        with self._lock:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._due = time.monotonic() + _LOOK_SECONDS

    def _reopen(self) -> None:
        self._due = time.monotonic() + _LOOK_SECONDS
        with suppress(FileNotFoundError):
            if os.path.samestat(self._path.stat(), os.fstat(self._file)):
                return
        before = self._file
        self._open()
        os.close(before)


class CallMetrics(Protocol):
    """Counts calls."""

    def counter_for(self, method: str, *, is_stream: bool) -> Callable[[str, str | None, float], None]:
        """What takes the code, the reason and the seconds of each call of a method that has ended."""


class AccessLog:
    """Where the lines go. Where that fails, calls go on, and the other log says so once."""

    def __init__(self, lines: LogSink, metrics: CallMetrics | None = None) -> None:
        """Args: lines, where they go; metrics, what counts the calls as well."""
        self.metrics: Final = metrics
        self._lines = lines
        self._failing = False

    def write(self, line: str) -> None:
        """Writes one line, its end included."""
        try:
            self._lines.write(line)
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._failing = True
                _log.error("the access log cannot be written", type=type(error).__qualname__)

    def close(self) -> None:
        """Closes the file, where there is one."""
        if isinstance(self._lines, LogFile):
            self._lines.close()


class CallRecord:
    """One call, and what its line will say."""

    __slots__ = ("at", "began", "caller", "context", "refusal", "request", "response", "streamed_ids")

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.context = context
        self.at = time.time()
        self.began = time.perf_counter()
        self.caller: Principal | None = None  # where it is not the current one
        self.request: Any = None  # where it was looked at
        self.response: Any = None  # of a call that was answered
        self.streamed_ids: dict[str, dict[str, None]] = {}  # by a stream, so far: ids by their kind
        self.refusal: DomainError | None = None


class MethodLog:
    """Writes the lines of one method's calls: ids, and no other value of a request or a record."""

    def __init__(self, log: AccessLog, service: str, method: str) -> None:
        """Args: service, its full name."""
        self.method: Final = f"/{service}/{method}"
        self._write = log.write
        contract: Any = descriptor_pool.Default().FindMethodByName(f"{service}.{method}")
        request, response = contract.input_type, contract.output_type
        kinds = (
            (kind, audited_ids.request_ids(request, kind), audited_ids.response_ids(response, kind))
            for kind in audited_ids.KINDS
        )
        self._kinds = [(kind, requested, returned) for kind, requested, returned in kinds if requested or returned]
        self._has_request_id = "request_id" in request.fields_by_name
        is_stream = contract.server_streaming or contract.client_streaming
        self._count = log.metrics.counter_for(self.method, is_stream=is_stream) if log.metrics else None

    def add_streamed_ids(self, record: CallRecord, response: Any) -> None:
        """Notes the ids that one message of a stream discloses."""
        for kind, _, returned in self._kinds:
            ids = record.streamed_ids.setdefault(kind, {})
            if len(ids) <= MAX_LOGGED_IDS:
                ids.update(dict.fromkeys(filter(None, returned.ids(response))))

    def end(self, record: CallRecord) -> None:
        """Writes the line of a call that has come to its end, and counts it."""
        caller = record.caller or current.get(None)
        seconds = time.perf_counter() - record.began
        code, reason = _code(record), record.refusal.reason if record.refusal else None
        refused = f'"reason":"{reason}",' if reason else ""
        if self._count:
            with suppress(Exception):  # a count that cannot be kept fails no call
                self._count(code, reason, seconds)
        # By hand, since json.dumps takes longer than all else here. Nothing needs escaping: the names of callers are
        # those of the keys file, ids and UUIDs match their patterns, and what is left the caller does not choose.
        self._write(
            f'{{"event":"call","time":"{_time(record.at)}","caller":"{caller.name if caller else ""}",'
            f'"peer":"{record.context.peer()}","method":"{self.method}","code":"{code}",'
            f'{refused}{self._touched(record)}"ms":{seconds * 1000:.3f}}}\n'
        )

    def _touched(self, record: CallRecord) -> str:
        """The fields that name whom it was about, and the request_id, each with a comma behind it."""
        request, response, fields = record.request, record.response, ""
        for kind, requested, returned in self._kinds:
            ids = list(filter(ID.fullmatch, requested.ids(request))) if request is not None else []
            ids += filter(None, returned.ids(response)) if response is not None else record.streamed_ids.get(kind, ())
            if ids:
                fields += _field(kind, dict.fromkeys(ids) if len(ids) > 1 else ids)
        if self._has_request_id and request is not None and UUID.fullmatch(request.request_id):
            fields += f'"request_id":"{request.request_id.lower()}",'
        return fields


def _field(kind: str, ids: Collection[str]) -> str:
    if len(ids) <= MAX_LOGGED_IDS:
        return f'"{kind}_ids":["{_COMMA.join(ids)}"],'
    return f'"{kind}_ids":["{_COMMA.join(islice(ids, MAX_LOGGED_IDS))}"],"{kind}_ids_left_out":true,'


def _code(record: CallRecord) -> str:
    refusal, context = record.refusal, record.context
    if refusal:
        return _CODE_NAMES[refusal.reason]
    if not context.is_active():
        return "CANCELLED"  # by the caller, its deadline, or a stop
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # which the library's own services set
    return code.name if code else "OK"


_second: tuple[int, str] = (0, "")


def _time(at: float) -> str:
    """Such as 2026-01-31T12:00:00.123Z. What is the same for a second is made once a second."""
    global _second  # noqa: PLW0603 - a tuple replaced whole, so that threads need no lock
    second, text = _second
    since = at - second
    if not 0 <= since < 1:
        second = int(at)
        text = datetime.fromtimestamp(second, UTC).isoformat()[:19]
        since = at - second
        _second = (second, text)
    return f"{text}.{int(since * 1000):03}Z"
