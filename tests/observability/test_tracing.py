"""Traces: what a span says of a call, and that it says nothing of a patient."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from caseload.v1 import patient_service_pb2 as pb
from caseload.v1 import patient_service_pb2_grpc
from caseload_server.api.patient_service import PatientServicer
from caseload_server.observability.tracing import _LoggingExporter
from caseload_server.rpc.server import CaseloadServer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.instrumentation.grpc import client_interceptor
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from tests.conftest import serving as serving_on
from tests.observability.trace_collector import Collector, ReceivedSpan, collector
from tests.security.server_fixture import KeysFile, await_writes, bearer, logging
from tests.support.api_driver import ApiDriver, request
from tests.support.servers import Client
from tests.support.waiting import HUNG_SECONDS, eventually, join
from tests.support.watch_reader import WatchReader
from tests.support.write_lock import holding_the_lock, wait_for_locks

__all__ = ["collector"]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER_SPAN = ("traceparent", f"00-{TRACE}-{PARENT}-01")
SERVICE = "caseload.v1.PatientService"


@pytest.fixture
def traced(collector: Collector, database_url: str) -> Iterator[CaseloadServer]:  # noqa: ARG001 - it runs first
    with serving_on(database_url, threads=8) as server:
        yield server


@pytest.fixture
def patients(traced: CaseloadServer) -> Iterator[Any]:
    caller = Client(traced.address)
    yield caller.patients
    caller.close()


def create(patients: Any, patient_id: str = "jane", *metadata: tuple[str, str | bytes], request_id: str = "") -> None:
    patients.CreatePatient(
        request("CreatePatient", patient_id=patient_id, patient={"display_name": "Jane Roe"}, request_id=request_id),
        metadata=metadata,
        timeout=HUNG_SECONDS,
    )


def refused(patients: Any, patient_id: str, *metadata: tuple[str, str | bytes]) -> None:
    with pytest.raises(grpc.RpcError):
        patients.GetPatient(pb.GetPatientRequest(patient_id=patient_id), metadata=metadata, timeout=HUNG_SECONDS)


def tree(spans: list[ReceivedSpan]) -> list[tuple[str, str]]:
    """Each span's name with that of its parent, sorted."""
    names = {span.id: span.name for span in spans}
    return sorted((span.name, names.get(span.parent, span.parent)) for span in spans)


def test_a_call_is_a_span_below_its_callers_with_store_and_commit_below_it(collector: Collector, patients: Any) -> None:
    create(patients, "jane", CALLER_SPAN, ("caseload-on-behalf-of", "jdoe"))
    [span] = collector.wait_for("CreatePatient")
    spans = [one for one in collector.spans() if one.trace_id == TRACE]
    name = f"{SERVICE}/CreatePatient"
    assert tree(spans) == [(name, PARENT), ("store.commit", "store.write"), ("store.write", name)]
    queued = span.attributes.pop("caseload.queue.seconds")
    assert 0 <= queued < HUNG_SECONDS
    assert span.attributes == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "CreatePatient",
        "rpc.grpc.status_code": 0,
        "caseload.caller": "local",
        "enduser.pseudo.id": "jdoe",
    }
    assert (span.is_error, span.span.kind, span.events) == (False, 2, [])
    [commit] = [one for one in spans if one.name == "store.commit"]
    assert commit.attributes["caseload.commit.writes"] == 1
    assert commit.attributes["db.system.name"] in {"sqlite", "postgresql"}
    for child, parent in (("store.write", name), ("store.commit", "store.write")):
        [inner], [outer] = ([one.span for one in spans if one.name == found] for found in (child, parent))
        assert outer.start_time_unix_nano <= inner.start_time_unix_nano
        assert inner.end_time_unix_nano <= outer.end_time_unix_nano
    assert span.resource["service.name"] == "caseload"
    assert span.schema == "https://opentelemetry.io/schemas/1.37.0"


def test_the_parent_is_the_span_of_an_instrumented_caller(collector: Collector, traced: CaseloadServer) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    make_interceptor: Any = client_interceptor  # the library has no types for both
    intercept: Any = intercept_channel
    with grpc.insecure_channel(traced.address) as channel:
        create(patient_service_pb2_grpc.PatientServiceStub(intercept(channel, make_interceptor(provider))))
    [called] = spans.get_finished_spans()
    [served] = collector.wait_for("CreatePatient")
    assert called.context is not None
    assert (served.trace_id, served.parent) == (f"{called.context.trace_id:032x}", f"{called.context.span_id:016x}")


def test_a_span_names_the_end_user_for_whom_the_caller_acts(collector: Collector, patients: Any) -> None:
    create(patients, "jane", ("caseload-on-behalf-of", "user-17"))
    refused(patients, "nobody", ("caseload-on-behalf-of", "Jane Roe"))
    [created] = collector.wait_for("CreatePatient")
    [malformed] = collector.wait_for("GetPatient")
    assert created.attributes["enduser.pseudo.id"] == "user-17"
    assert (malformed.attributes["error.type"], "enduser.pseudo.id" in malformed.attributes) == ("INVALID_FIELD", False)
    assert "Jane Roe" not in collector.text()


def test_a_refused_call_is_an_error_with_its_code_and_reason(collector: Collector, patients: Any) -> None:
    refused(patients, "nobody")
    refused(patients, "")
    missing, invalid = sorted(collector.wait_for("GetPatient", 2), key=lambda span: span.span.start_time_unix_nano)
    assert (missing.is_error, missing.attributes["rpc.grpc.status_code"]) == (True, 5)
    assert missing.attributes["error.type"] == missing.span.status.message == "PATIENT_NOT_FOUND"
    assert (invalid.is_error, invalid.attributes["error.type"]) == (True, "INVALID_FIELD")
    assert invalid.attributes["rpc.grpc.status_code"] == 3


def test_every_write_of_a_shared_commit_has_its_span(
    collector: Collector, traced: CaseloadServer, patients: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_locks(monkeypatch)
    timed: Any = traced.store
    group_commit = timed._database._database._group_commit
    monkeypatch.setattr(group_commit, "_max_leaders", 1)  # so that at most two commits write all five

    def write(number: int) -> None:
        create(patients, f"p{number}", request_id=str(uuid4()))

    def arrived() -> bool:
        return len(group_commit._keys) + len(group_commit._queue) == 5

    with holding_the_lock(database_url):
        writers = [threading.Thread(target=write, args=(number,)) for number in range(5)]
        for writer in writers:
            writer.start()
        eventually(arrived)
    join(*writers)
    commits = collector.wait_for("store.commit", 5)
    assert len({span.trace_id for span in commits}) == 5
    assert max(span.attributes["caseload.commit.writes"] for span in commits) >= 2


def test_a_defect_is_recorded_by_its_class_only(
    collector: Collector, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_self: object, request: Any, _context: grpc.ServicerContext) -> None:
        raise LookupError(f"do-not-repeat-me {request}")

    monkeypatch.setattr(PatientServicer, "GetPatient", crash)
    with serving_on(database_url) as server, capture_logs() as events:
        caller = Client(server.address)
        refused(caller.patients, "jane")
        caller.close()
    [span] = collector.wait_for("GetPatient")
    assert span.attributes["error.type"] == "INTERNAL"
    assert span.events == [("exception", {"exception.type": "LookupError"})]
    assert "do-not-repeat-me" not in collector.text()
    assert [event["trace_id"] for event in events if event["event"] == "call failed"] == [span.trace_id]


def test_the_span_of_a_watch_ends_with_it_and_has_no_store_spans(collector: Collector, traced: CaseloadServer) -> None:
    with ApiDriver(traced.address) as api:
        with WatchReader(api) as watch:
            api.patients("jane")
            watch.wait_for(1)
            collector.wait_for("CreatePatient")
            assert collector.spans("WatchChanges") == []
        [span] = collector.wait_for("WatchChanges")
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
    assert not span.is_error
    assert [one for one in collector.spans() if one.parent == span.id] == []


class Answering(SpanExporter):
    """Exports nothing. Each call has the next of the given results."""

    def __init__(self, *results: SpanExportResult) -> None:
        self._results = iter(results)

    def export(self, _spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return next(self._results)


def test_exports_that_fail_are_logged_once_until_one_succeeds() -> None:
    results = [SpanExportResult.FAILURE, SpanExportResult.FAILURE, SpanExportResult.SUCCESS, SpanExportResult.FAILURE]
    exporter = _LoggingExporter(Answering(*results))
    with capture_logs() as events:
        assert [exporter.export([]) for _ in results] == results
    assert [event["event"] for event in events] == ["trace export failed"] * 2


def test_the_access_log_has_the_trace_id(collector: Collector, tmp_path: Path) -> None:
    unsampled = ("traceparent", f"00-{'a' * 32}-{PARENT}-00")
    with logging(tmp_path) as (server, _, reader):
        caller = Client(server.address)
        create(caller.patients, "jane", CALLER_SPAN)
        refused(caller.patients, "nobody", unsampled)
        refused(caller.patients, "nobody")
        caller.close()
        lines = eventually(lambda: found if len(found := reader.lines()) == 3 else [])
    assert [line["trace_id"] for line in lines[:2]] == [TRACE, "a" * 32]
    assert [span.trace_id for span in collector.wait_for("GetPatient")] == [lines[2]["trace_id"]]


def test_the_access_log_of_a_server_without_traces_has_no_trace_id(tmp_path: Path) -> None:
    with logging(tmp_path) as (_, api, reader):
        api.patients("jane")
        [line] = eventually(reader.lines)
    assert "trace_id" not in line


@pytest.mark.parametrize(
    "metadata",
    [
        [("traceparent", "00-Jane-Roe-01")],
        [("traceparent", f"00-{TRACE}-{'0' * 16}-01")],
        [("traceparent", "x" * 2000)],
        [],
    ],
    ids=["malformed", "no span", "long", "none"],
)
def test_a_call_without_a_valid_parent_begins_a_trace(
    collector: Collector, tmp_path: Path, metadata: list[tuple[str, str]]
) -> None:
    with logging(tmp_path) as (server, _, _reader):
        caller = Client(server.address)
        refused(caller.patients, "nobody", *metadata)
        caller.close()
    [span] = collector.wait_for("GetPatient")
    assert (span.parent, span.trace_id == TRACE) == ("", False)


def test_no_other_metadata_leaves_with_the_spans(collector: Collector, tmp_path: Path) -> None:
    with logging(tmp_path) as (server, _, _reader):
        caller = Client(server.address)
        others = [("tracestate", "vendor=Canary-Zq9"), ("baggage", "name=Canary-Zq9"), ("x", "Canary-Zq9")]
        create(caller.patients, "jane", CALLER_SPAN, *others)
        caller.close()
    [span] = collector.wait_for("CreatePatient")
    assert (span.trace_id, span.parent, span.span.trace_state) == (TRACE, PARENT, "")
    assert "Canary" not in collector.text()


def test_calls_rejected_before_they_get_a_thread_have_spans(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = KeysFile(tmp_path / "keys")
    writer = bearer(keys.add("writer", "write"))
    settings: dict[str, Any] = {"keys_file": keys.path, "threads": 1, "max_queue_depth": 1, "max_caller_share": 1}
    wait_for_locks(monkeypatch)
    with logging(tmp_path, queue_timeout_seconds=0.2, **settings) as (server, _, reader):
        caller = Client(server.address)
        refused(caller.patients, "jane", ("authorization", "Bearer wrong"), CALLER_SPAN)
        refused(caller.patients, "jane", *writer)
        with holding_the_lock(server._config.database):
            first = threading.Thread(target=create, args=(caller.patients, "p1", *writer))
            first.start()
            await_writes(server, 1)
            with pytest.raises(grpc.RpcError):
                create(caller.patients, "p2", *writer)
        join(first)
        caller.close()
        lines = eventually(lambda: found if len(found := reader.lines()) == 4 else [])
    unknown, denied = sorted(collector.wait_for("GetPatient", 2), key=lambda span: span.span.start_time_unix_nano)
    assert (unknown.attributes["error.type"], unknown.trace_id, unknown.parent) == ("UNAUTHENTICATED", TRACE, PARENT)
    assert "caseload.caller" not in unknown.attributes
    assert denied.attributes["error.type"] == "PERMISSION_DENIED"
    shed = [span for span in collector.wait_for("CreatePatient", 2) if span.is_error]
    assert [span.attributes["error.type"] for span in shed] == ["OVERLOADED"]
    assert shed[0].attributes["caseload.caller"] == "writer"
    assert shed[0].attributes["caseload.queue.seconds"] > 0
    assert {line["trace_id"] for line in lines} == {one.trace_id for one in collector.spans() if one.name[0] == "c"}


def test_health_checks_have_no_spans(collector: Collector, tmp_path: Path) -> None:
    with logging(tmp_path) as (_server, api, _reader):
        checking: Any = health_pb2_grpc.HealthStub
        checking(api.channel).Check(health_pb2.HealthCheckRequest(), metadata=[CALLER_SPAN], timeout=HUNG_SECONDS)
        api.patients("jane")
    assert [span.name for span in collector.wait_for("CreatePatient")] == [f"{SERVICE}/CreatePatient"]
    assert collector.spans("Check") == []
