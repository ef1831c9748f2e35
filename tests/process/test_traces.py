"""Server processes export their spans: when they do, over which protocol, and until when."""

import json
import sys
from pathlib import Path

import pytest
from caseload.v1 import patient_service_pb2 as pb

from tests.observability.trace_collector import PROMPTLY, Collector, collecting, collecting_over_http
from tests.process.command_runner import SERVE, refusal, url
from tests.process.worker_processes import WorkersServer
from tests.support.api_driver import ApiDriver
from tests.support.servers import Client, ServerProcess, free_address
from tests.support.waiting import HUNG_SECONDS

AT_A_STOP = {"OTEL_BSP_SCHEDULE_DELAY": "10000000"}
"""Export nothing until a stop."""
NO_OPENTELEMETRY = (
    "import sys; sys.modules['opentelemetry'] = None; from caseload_server.commands.main import main; main()"
)


def events(log: str) -> list[str]:
    return [json.loads(line)["event"] for line in log.splitlines()]


def get(address: str) -> None:
    caller = Client(address)
    caller.patients.ListPatients(pb.ListPatientsRequest(), timeout=HUNG_SECONDS)
    caller.close()


def test_a_stop_exports_the_last_spans(tmp_path: Path) -> None:
    with collecting() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "OTEL_SERVICE_NAME": "ours", **AT_A_STOP}
        with ServerProcess(url(tmp_path / "caseload.db"), environment=environment) as server:
            get(server.address)
            assert collector.spans() == []
            code, log = server.stop()
        [span] = collector.spans("ListPatients")
    assert (code, events(log)) == (0, ["started", "stopping", "stopped"])
    assert span.resource["service.name"] == "ours"
    assert json.loads(log.splitlines()[0])["traces"] is True


def test_a_stop_ends_without_a_collector(tmp_path: Path) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{free_address()}", "OTEL_EXPORTER_OTLP_TIMEOUT": "10000"}
    with ServerProcess(url(tmp_path / "caseload.db"), environment=environment | AT_A_STOP) as server:
        get(server.address)
        code, log = server.stop()
    assert (code, events(log)) == (0, ["started", "stopping", "trace export failed", "stopped"])


def test_a_collector_that_returns_gets_spans_again(tmp_path: Path) -> None:
    collector, address = Collector(), free_address()
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}", "OTEL_EXPORTER_OTLP_TIMEOUT": "1", **PROMPTLY}
    with ServerProcess(url(tmp_path / "caseload.db"), environment=environment) as server:
        with collecting(address, collector):
            get(server.address)
            collector.wait_for("ListPatients", 1)
        get(server.address)
        with collecting(address, collector):
            get(server.address)
            while len(collector.spans("ListPatients")) < 2:
                get(server.address)
            assert server.stop()[0] == 0


def test_every_worker_exports_and_so_does_the_next_process(tmp_path: Path) -> None:
    with collecting() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, **PROMPTLY}
        with WorkersServer(url(tmp_path / "caseload.db"), environment=environment) as server:
            with server.caller_of_each() as callers:
                for api in callers.values():
                    api.send("ListPatients")
            spans = collector.wait_for("ListPatients", 2)
            assert {span.resource["process.pid"] for span in spans} == callers.keys()
            server.stop()
        with ServerProcess(url(tmp_path / "caseload.db"), environment=environment) as server:
            get(server.address)
            collector.wait_for("ListPatients", 3)
        assert len({span.resource["service.instance.id"] for span in collector.spans("ListPatients")}) == 3


def test_spans_leave_over_http_too(tmp_path: Path) -> None:
    with collecting_over_http() as collector:
        environment = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address,
            **AT_A_STOP,
        }
        with ServerProcess(url(tmp_path / "caseload.db"), environment=environment) as server:
            get(server.address)
            server.stop()
        assert len(collector.spans("ListPatients")) == 1


@pytest.mark.parametrize(
    "variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}], ids=["disabled", "no exporter"]
)
def test_traces_can_be_switched_off(tmp_path: Path, variables: dict[str, str]) -> None:
    with collecting() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, **variables, **PROMPTLY}
        with ServerProcess(url(tmp_path / "caseload.db"), environment=environment) as server:
            get(server.address)
            _, log = server.stop()
        assert collector.spans() == []
    assert json.loads(log.splitlines()[0])["traces"] is False


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:4317"], ids=["off", "on"])
def test_a_server_without_opentelemetry_serves_and_says_that_it_cannot_trace(tmp_path: Path, endpoint: str) -> None:
    command = (sys.executable, "-c", NO_OPENTELEMETRY)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    with ServerProcess(url(tmp_path / "caseload.db"), command=command, environment=environment) as server:
        with ApiDriver(server.address) as api:
            api.patients("jane")
        code, log = server.stop()
    warned = ["traces unavailable"] if endpoint else []
    assert (code, events(log)) == (0, [*warned, "started", "stopping", "stopped"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "do-not-repeat-me"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "often"),
        ("OTEL_TRACES_SAMPLER", "do-not-repeat-me"),
        ("OTEL_RESOURCE_ATTRIBUTES", "do-not-repeat-me"),
    ],
)
def test_a_start_fails_with_a_setting_of_opentelemetry_that_cannot_be_used(
    tmp_path: Path, name: str, value: str
) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", name: value}
    assert refusal(tmp_path, *SERVE, "--database", url(tmp_path / "caseload.db"), **variables).startswith("OTEL_")
