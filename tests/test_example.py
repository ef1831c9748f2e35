"""client_example.py works for a new user."""

import re
import subprocess
import sys
from typing import Any

import grpc
import pytest
from caseload.client import connect
from caseload.v1 import change_service_pb2 as change_pb
from caseload.v1 import patient_service_pb2 as patient_pb
from caseload.v1 import therapist_service_pb2 as therapist_pb
from caseload_server.rpc.server import CaseloadServer

import client_example
from tests.docs.doc_blocks import ROOT, blocks
from tests.support.servers import Client
from tests.support.waiting import HUNG_SECONDS

EXAMPLE = ROOT / "client_example.py"


def run_example(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, timeout=HUNG_SECONDS, check=False
    )


def test_every_run_of_the_example_prints_what_the_readme_shows(server: CaseloadServer) -> None:
    [shown] = [block.output for block in blocks(ROOT / "README.md") if "client_example.py" in block.text]
    for _ in range(2):
        done = run_example(server.address)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == shown


def test_the_example_deletes_every_record_it_created(server: CaseloadServer, client: Client) -> None:
    assert run_example(server.address).returncode == 0
    therapists = client.therapists.ListTherapists(therapist_pb.ListTherapistsRequest(show_deleted=True)).therapists
    patients = client.patients.ListPatients(patient_pb.ListPatientsRequest(show_deleted=True)).patients
    assert [person.HasField("delete_time") for person in (*therapists, *patients)] == [True] * 5


class Recorder(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Records every call of a channel."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float | None]] = []
        self.streams: list[Any] = []

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        method = client_call_details.method.rpartition("/")[2]
        self.calls.append((method, client_call_details.timeout))
        return continuation(client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self.streams.append(self.intercept_unary_unary(continuation, client_call_details, request))
        return self.streams[-1]


def test_every_call_of_the_example_has_a_deadline_and_every_write_a_request_id(server: CaseloadServer) -> None:
    recorder = Recorder()
    with connect(server.address, interceptors=[recorder]) as caseload:
        client_example.Tour(caseload).walk()
        log = caseload.changes.ListChanges(change_pb.ListChangesRequest(page_size=1000)).change_sets
    assert {method for method, _ in recorder.calls} == {
        *("CreateTherapist", "CreatePatient", "AssignPatient", "AssignTherapist", "UpdatePatient"),
        *("UnassignPatient", "UnassignTherapist", "ListTherapistPatients", "ListPatientTherapists"),
        *("TransferPatients", "DeleteTherapist", "DeletePatient", "WatchChanges", "ListChanges"),
    }
    assert {method for method, timeout in recorder.calls if not timeout} == {"WatchChanges"}
    request_ids = {one.request_id for one in log}
    assert len(request_ids) == len(log) > 15
    assert "" not in request_ids


def test_the_example_watch_shows_one_patient_and_is_cancelled(
    server: CaseloadServer, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    with connect(server.address, interceptors=[recorder]) as caseload:
        tour = client_example.Tour(caseload)
        tour.create(("Ada Roe",), ("Jane Doe", "John Doe"))
        tour.delete((), ("John Doe",))
        tour.assign_patient("Ada Roe", "Jane Doe")
        tour.delete(("Ada Roe",), ("Jane Doe",))
        tour.watch("Jane Doe")
        [stream] = recorder.streams
        assert stream.code() == grpc.StatusCode.CANCELLED
    _, _, watched = capsys.readouterr().out.partition("Watched ")
    methods = re.findall(r"^  (\w+):", watched, re.MULTILINE)
    assert methods == ["CreatePatient", "AssignPatient", "DeleteTherapist", "DeletePatient"]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:50051"])
def test_without_a_server_the_example_prints_the_address_and_how_to_start_one(address: str) -> None:
    done = run_example(address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"No Caseload server answers on {address}. Start one with: make run\n"
