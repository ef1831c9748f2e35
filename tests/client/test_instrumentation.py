"""Both clients under the instrumentation of OpenTelemetry, which replaces calls by objects of its own."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.client import Caseload, aio, connect, error_info
from caseload.v1 import change_service_pb2 as pb
from caseload.v1 import patient_service_pb2 as patients
from caseload.v1.resources_pb2 import Patient
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.client.aio.run import eventually as aio_eventually
from tests.client.aio.run import in_time, run
from tests.security.server_fixture import serving
from tests.support.servers import free_address
from tests.support.waiting import HUNG_SECONDS, eventually, join

CREATE = patients.CreatePatientRequest(patient=Patient(display_name="Bob Ray"))
MISSING = patients.GetPatientRequest(patient_id="missing")


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """What the process records. A process has one provider, which another test may have set."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    spans, provider = InMemorySpanExporter(), trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return spans


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    """The finished spans of this test, with both clients instrumented."""
    kinds: Any = (GrpcInstrumentorClient, GrpcAioInstrumentorClient)  # untyped
    instrumentors = [kind() for kind in kinds]
    for one in instrumentors:
        one.instrument()
    yield exporter
    for one in instrumentors:
        one.uninstrument()
    exporter.clear()


def codes(spans: InMemorySpanExporter, method: str) -> list[Any]:
    """The status codes of the spans of a method."""
    found = [span for span in spans.get_finished_spans() if span.name.endswith(f"/{method}")]
    return [span.attributes["rpc.grpc.status_code"] for span in found if span.attributes]


def restarted_while_watched(folder: Path, address: str, received: list[pb.WatchChangesResponse]) -> str:
    """Restarts the server of a watch; returns the revision of a write after that."""
    with serving(folder, address=address):
        eventually(lambda: received)
    with serving(folder, address=address):
        with connect(address) as caseload:
            revision = caseload.patients.CreatePatient(CREATE, timeout=HUNG_SECONDS).revision
        eventually(lambda: received[-1].through_revision == revision)
    return revision


def revisions(received: list[pb.WatchChangesResponse]) -> list[str]:
    return [one.revision for response in received for one in response.change_sets]


def test_a_watch_resumes_over_a_restart(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    address = free_address()
    received: list[pb.WatchChangesResponse] = []
    with connect(address) as caseload:
        thread = threading.Thread(target=lambda: received.extend(caseload.watch()))
        thread.start()
        revision = restarted_while_watched(tmp_path, address, received)
    join(thread)
    assert revisions(received) == [revision]
    assert len(codes(spans, "WatchChanges")) >= 2


def test_a_watch_of_the_asyncio_client_resumes_over_a_restart(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    address = free_address()
    received: list[pb.WatchChangesResponse] = []

    async def receive(caseload: aio.Caseload) -> None:
        async for response in caseload.watch():
            received.append(response)  # noqa: PERF401 - the test looks while it runs

    async def watch() -> str:
        async with aio.connect(address) as caseload:
            task = asyncio.create_task(receive(caseload))
            revision = await asyncio.to_thread(restarted_while_watched, tmp_path, address, received)
        await in_time(task)
        return revision

    assert run(watch()) == revisions(received)[0]
    assert len(received) >= 2
    assert len(codes(spans, "WatchChanges")) >= 2


WAYS: list[Any] = [
    lambda method, request: method(request),
    lambda method, request: method.with_call(request)[0],
    lambda method, request: method.future(request).result(),
]


@pytest.mark.parametrize("way", WAYS, ids=["call", "with_call", "future"])
def test_each_way_to_call_answers_and_raises(tmp_path: Path, spans: InMemorySpanExporter, way: Any) -> None:
    with serving(tmp_path) as server, connect(server.address, timeout=HUNG_SECONDS) as caseload:
        made = way(caseload.patients.CreatePatient, CREATE)
        with pytest.raises(grpc.RpcError) as caught:
            way(caseload.patients.GetPatient, MISSING)
        eventually(lambda: codes(spans, "GetPatient"))
    assert made.patient.display_name == "Bob Ray"
    assert_not_found(caught.value)
    assert (codes(spans, "CreatePatient"), codes(spans, "GetPatient")) == ([0], [5])


def test_the_asyncio_client_answers_and_raises(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    async def calls(address: str) -> None:
        async with aio.connect(address, timeout=HUNG_SECONDS) as caseload:
            assert (await caseload.patients.CreatePatient(CREATE)).patient.display_name == "Bob Ray"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await caseload.patients.GetPatient(MISSING)
            assert_not_found(caught.value)
            await aio_eventually(lambda: codes(spans, "GetPatient"))

    with serving(tmp_path) as server:
        run(calls(server.address))
    assert (codes(spans, "CreatePatient"), codes(spans, "GetPatient")) == ([0], [5])


def assert_not_found(error: grpc.RpcError) -> None:
    assert error_info(error).reason == "PATIENT_NOT_FOUND"
    assert "reason: PATIENT_NOT_FOUND" in error.__notes__[0]


def test_a_stream_can_be_cancelled(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    """The instrumentation hides cancel(). The slot of the stream becomes free on the server."""
    with serving(tmp_path, max_watches=1) as server, connect(server.address) as caseload:
        for _ in range(3):
            stream = eventually(lambda: started(caseload))
            stream.cancel()
    assert len(codes(spans, "WatchChanges")) >= 3


def started(caseload: Caseload) -> Any:
    """A stream, once it has had a response, or None while the server has no free slot."""
    stream = caseload.changes.WatchChanges(pb.WatchChangesRequest())
    try:
        next(stream)
    except grpc.RpcError:
        return None
    return stream
