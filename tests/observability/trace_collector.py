"""An OpenTelemetry collector: receives spans by OTLP over gRPC, and over HTTP."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.support.waiting import eventually

ERROR: Final = 2
"""Status.StatusCode: STATUS_CODE_ERROR."""
PROMPTLY: Final = {"OTEL_BSP_SCHEDULE_DELAY": "20"}
"""Export spans after 20 ms instead of 5 s."""


class ReceivedSpan:
    """A span as it left the server."""

    def __init__(self, span: Any, resource: Any, scope: Any) -> None:
        self.span = span
        self.name: str = span.name
        self.trace_id: str = span.trace_id.hex()
        self.id: str = span.span_id.hex()
        self.parent: str = span.parent_span_id.hex()
        self.attributes = _plain(span.attributes)
        self.resource = _plain(resource.attributes)
        self.schema = scope.schema_url
        self.is_error = span.status.code == ERROR
        self.events = [(event.name, _plain(event.attributes)) for event in span.events]

    def __repr__(self) -> str:
        return f"{self.name} {self.attributes} {self.events}"


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects spans."""

    def __init__(self) -> None:
        self.address = ""
        self._requests: list[Any] = []

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ARG002 - gRPC passes it
        self._requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, name: str = "") -> list[ReceivedSpan]:
        """The spans so far, whose name ends like this."""
        found = [
            ReceivedSpan(span, resource.resource, scope)
            for request in list(self._requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return [span for span in found if span.name.endswith(name)]

    def wait_for(self, name: str, count: int = 1) -> list[ReceivedSpan]:
        """Waits until so many spans with this end of their name have arrived; returns them."""

        def arrived() -> list[ReceivedSpan]:
            found = self.spans(name)
            return found if len(found) >= count else []

        return eventually(arrived, self.spans)

    def text(self) -> str:
        """All that has arrived, readable."""
        return "\n".join(map(str, self._requests))


@contextmanager
def collecting(address: str = "127.0.0.1:0", collector: Collector | None = None) -> Iterator[Collector]:
    """Runs a collector that speaks gRPC."""
    collector = collector or Collector()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add_servicer: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server  # the package has no types for it
    add_servicer(collector, server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port(address)}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


@contextmanager
def collecting_over_http() -> Iterator[Collector]:
    """Runs a collector that speaks HTTP."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                collector._requests.append(trace_service_pb2.ExportTraceServiceRequest.FromString(data))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        collector.address = f"http://127.0.0.1:{server.server_port}"
        yield collector
        server.shutdown()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that servers of this process export to."""
    with collecting() as made:
        for name, value in {**PROMPTLY, "OTEL_EXPORTER_OTLP_ENDPOINT": made.address}.items():
            monkeypatch.setenv(name, value)
        yield made
