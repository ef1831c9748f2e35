"""SIGTERM and Ctrl-C end the server without losing a call."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1 import patient_service_pb2, resources_pb2, therapist_service_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.observability.metrics_client import wait_for_metrics
from tests.process.command_runner import url
from tests.process.worker_processes import listens
from tests.support.servers import Client, ServerProcess, free_address
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually
from tests.support.write_lock import holding_the_lock

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PATIENT_LOCKS = (sys.executable, str(Path(__file__).with_name("long_lock_wait_command.py")))
LIVENESS = ""
READINESS = ["caseload.v1.TherapistService", "caseload.v1.PatientService"]


def create(client: Client, therapist_id: str) -> "grpc.Future[therapist_service_pb2.CreateTherapistResponse]":
    therapist = resources_pb2.Therapist(display_name="Therapist")
    request = therapist_service_pb2.CreateTherapistRequest(therapist_id=therapist_id, therapist=therapist)
    future: grpc.Future[therapist_service_pb2.CreateTherapistResponse]
    future = client.therapists.CreateTherapist.future(request, timeout=HUNG_SECONDS)
    return future


def therapists(database: str) -> list[str]:
    """The ids of all therapists, read by starting a server on the database."""
    with ServerProcess(database) as server, connected(server) as client:
        page = client.therapists.ListTherapists(therapist_service_pb2.ListTherapistsRequest(), timeout=HUNG_SECONDS)
        return [therapist.therapist_id for therapist in page.therapists]


@contextmanager
def connected(server: ServerProcess) -> Iterator[Client]:
    client = Client(server.address)
    try:
        yield client
    finally:
        client.close()


def health(client: Client, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=HUNG_SECONDS).status)


def watched(client: Client, service: str) -> Any:
    """The responses of a health watch."""
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=HUNG_SECONDS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_and_the_next_start_has_all_data(database_url: str, number: int) -> None:
    with ServerProcess(database_url) as server, connected(server) as client:
        create(client, "ann").result()
        patient = resources_pb2.Patient(display_name="Patient")
        client.patients.CreatePatient(patient_service_pb2.CreatePatientRequest(patient_id="bob", patient=patient))
        client.therapists.AssignPatient(
            therapist_service_pb2.AssignPatientRequest(therapist_id="ann", patient_id="bob")
        )
        assert server.stop(number)[0] == 0
    with ServerProcess(database_url) as server, connected(server) as client:
        page = client.therapists.ListTherapistPatients(
            therapist_service_pb2.ListTherapistPatientsRequest(therapist_id="ann"), timeout=HUNG_SECONDS
        )
    assert [entry.patient.patient_id for entry in page.entries] == ["bob"]


def test_the_server_prints_only_the_ready_line_and_logs_json_lines(tmp_path: Path) -> None:
    with ServerProcess(url(tmp_path / "caseload.db"), access_log=None) as server, connected(server) as client:
        create(client, "ann").result()
        server.process.terminate()
        printed, log = server.process.communicate(timeout=HUNG_SECONDS)
    assert printed == ""  # the test read the ready line for the address
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events == ["started", "call", "stopping", "stopped"]


def test_a_stop_completes_calls_in_flight(database_url: str) -> None:
    ids = [f"therapist-{number}" for number in range(8)]
    metrics = free_address()
    arguments = ("--grace-seconds", str(NEVER_SECONDS), "--metrics-address", metrics)
    with ServerProcess(database_url, *arguments, command=PATIENT_LOCKS) as server, connected(server) as client:
        with holding_the_lock(database_url):
            calls = [create(client, therapist_id) for therapist_id in ids]
            wait_for_metrics(metrics, lambda now: now("in_flight", pool="write") == len(ids))
            server.process.terminate()
            eventually(lambda: not listens(server.process.pid, server.address))
            assert not any(call.done() for call in calls)
        assert [call.result().therapist.therapist_id for call in calls] == ids
        assert server.process.wait(HUNG_SECONDS) == 0
    assert therapists(database_url) == ids


def test_calls_longer_than_the_grace_period_do_not_prevent_the_stop(database_url: str) -> None:
    metrics = free_address()
    arguments = ("--grace-seconds", "0.3", "--metrics-address", metrics)
    with ServerProcess(database_url, *arguments) as server, connected(server) as client:
        create(client, "before").result()
        with holding_the_lock(database_url):
            call = create(client, "under-way")
            wait_for_metrics(metrics, lambda now: now("in_flight", pool="write") == 1)
            server.process.terminate()
            with pytest.raises(grpc.RpcError):
                call.result()
        assert server.process.wait(HUNG_SECONDS) == 0
    assert "before" in therapists(database_url)


def test_a_draining_server_is_not_ready_and_answers_calls(tmp_path: Path) -> None:
    database = url(tmp_path / "caseload.db")
    with ServerProcess(database, "--drain-seconds", "5") as server, connected(server) as client:
        assert [health(client, name) for name in [LIVENESS, *READINESS]] == [SERVING] * 3
        server.process.terminate()
        eventually(lambda: SERVING not in [health(client, name) for name in READINESS])
        create(client, "ann").result()
        assert health(client, LIVENESS) == SERVING
        assert [health(client, name) for name in READINESS] == [NOT_SERVING] * 2
        assert server.process.wait(HUNG_SECONDS) == 0
    assert therapists(database) == ["ann"]


# Two signals are realistic; the storm makes a handler that takes a lock re-enter within a few tries.
@pytest.mark.parametrize(
    ("numbers", "attempts"),
    [
        ([signal.SIGTERM] * 2, 3),
        ([signal.SIGTERM, signal.SIGINT], 3),
        ([signal.SIGTERM, signal.SIGINT] * 2000, 4),
    ],
    ids=["the same twice", "both", "a storm"],
)
def test_several_signals_at_once_stop_the_server_like_one(tmp_path: Path, numbers: list[int], attempts: int) -> None:
    for attempt in range(attempts):
        with ServerProcess(url(tmp_path / f"{attempt}.db")) as server:
            for number in numbers:
                os.kill(server.process.pid, number)  # not reaped yet, so the id is still valid
            _, log = server.process.communicate(timeout=HUNG_SECONDS)
        assert server.process.returncode == 0
        assert [json.loads(line)["event"] for line in log.splitlines()] == ["started", "stopping", "stopped"]


def test_a_second_signal_while_draining_changes_nothing(tmp_path: Path) -> None:
    with ServerProcess(url(tmp_path / "caseload.db"), "--drain-seconds", "5") as server, connected(server) as client:
        server.process.terminate()
        eventually(lambda: health(client, READINESS[0]) == NOT_SERVING)
        server.process.send_signal(signal.SIGINT)
        create(client, "ann").result()
        assert server.process.wait(HUNG_SECONDS) == 0
    assert therapists(url(tmp_path / "caseload.db")) == ["ann"]


@pytest.mark.parametrize("service", [LIVENESS, READINESS[0]])
def test_an_open_health_watch_does_not_delay_the_stop(tmp_path: Path, service: str) -> None:
    grace = ("--grace-seconds", str(NEVER_SECONDS))
    with ServerProcess(url(tmp_path / "caseload.db"), *grace) as server, connected(server) as client:
        watch = watched(client, service)
        assert next(watch).status == SERVING
        assert server.stop()[0] == 0


def test_a_health_watch_reports_the_end_of_readiness(tmp_path: Path) -> None:
    with ServerProcess(url(tmp_path / "caseload.db"), "--drain-seconds", "5") as server, connected(server) as client:
        watch = watched(client, READINESS[0])
        assert next(watch).status == SERVING
        server.process.terminate()
        assert next(watch).status == NOT_SERVING
        watch.cancel()
        assert server.process.wait(HUNG_SECONDS) == 0


def test_an_open_reflection_stream_does_not_delay_the_stop(tmp_path: Path) -> None:
    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="*")
        server.process.wait(HUNG_SECONDS)

    grace = ("--grace-seconds", str(NEVER_SECONDS))
    with ServerProcess(url(tmp_path / "caseload.db"), *grace) as server, connected(server) as client:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        stream = stub.ServerReflectionInfo(requests(), timeout=HUNG_SECONDS)
        assert next(stream).HasField("list_services_response")
        server.process.terminate()
        assert server.process.wait(HUNG_SECONDS) == 0
