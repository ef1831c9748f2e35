"""Which calls are retried, when, and which are not."""

from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from caseload.client import connect
from caseload.v1 import change_service_pb2, patient_service_pb2, resources_pb2, therapist_service_pb2
from caseload_server.domain import limits
from caseload_server.rpc import retry_delays
from grpc import StatusCode

from tests.client.fake_server import Answer, FakeServer
from tests.security.server_fixture import LogReader, serving
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually
from tests.support.write_lock import holding_the_lock, wait_for_locks

UNAVAILABLE, EXHAUSTED = StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED


def created(peer: FakeServer, *answers: Answer, seconds: float = HUNG_SECONDS) -> StatusCode:
    """The status of a CreatePatient that gets these answers within a deadline of this many seconds."""
    peer.answer_with(*answers)
    with connect(peer.address, timeout=seconds) as caseload:
        try:
            caseload.patients.CreatePatient(patient_service_pb2.CreatePatientRequest())
        except grpc.RpcError as error:
            return error.code()
    return StatusCode.OK


@pytest.mark.parametrize("code", [UNAVAILABLE, EXHAUSTED, StatusCode.CANCELLED])
def test_transient_errors_are_retried(peer: FakeServer, code: StatusCode) -> None:
    """With the backoff of the service config."""
    assert created(peer, code, code) == StatusCode.OK
    assert len(peer.attempts) == 3


def test_every_attempt_of_a_write_has_the_same_request_id(peer: FakeServer) -> None:
    assert created(peer, UNAVAILABLE, UNAVAILABLE) == StatusCode.OK
    assert len(peer.attempts) == 3
    [sent] = {attempt.data for attempt in peer.attempts}
    assert patient_service_pb2.CreatePatientRequest.FromString(sent).request_id


@pytest.mark.slow
def test_after_five_attempts_the_error_is_raised(peer: FakeServer) -> None:
    assert created(peer, *[UNAVAILABLE] * 9) == UNAVAILABLE
    assert len(peer.attempts) == 5


@pytest.mark.parametrize(
    "code",
    [StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION, StatusCode.ABORTED, StatusCode.INTERNAL],
)
def test_permanent_errors_are_raised_at_once(peer: FakeServer, code: StatusCode) -> None:
    assert created(peer, code) == code
    assert len(peer.attempts) == 1


@pytest.mark.slow
def test_a_retry_delay_of_the_server_is_obeyed(peer: FakeServer) -> None:
    assert created(peer, (EXHAUSTED, "1"), (UNAVAILABLE, "1")) == StatusCode.OK
    assert len(peer.attempts) == 3
    an_hour = "3600000"
    assert created(peer, (EXHAUSTED, an_hour), seconds=2) == StatusCode.DEADLINE_EXCEEDED
    assert len(peer.attempts) == 1


def test_a_server_that_forbids_a_retry_is_obeyed(peer: FakeServer) -> None:
    assert created(peer, (EXHAUSTED, "-1")) == EXHAUSTED
    assert len(peer.attempts) == 1


def test_a_watch_is_retried_when_unavailable_and_not_when_the_server_is_full(peer: FakeServer) -> None:
    with connect(peer.address) as caseload:
        peer.answer_with(UNAVAILABLE)
        assert len(list(caseload.changes.WatchChanges(change_service_pb2.WatchChangesRequest()))) == 1
        peer.answer_with(EXHAUSTED)
        with pytest.raises(grpc.RpcError):
            list(caseload.changes.WatchChanges(change_service_pb2.WatchChangesRequest()))
        assert len(peer.attempts) == 1


@pytest.mark.slow
def test_retries_stop_when_most_calls_fail(peer: FakeServer) -> None:
    """Otherwise retries would multiply the load of an overloaded server by five."""
    calls = 600
    peer.answer_with(*[(UNAVAILABLE, "1")] * calls * 5)
    with connect(peer.address, timeout=HUNG_SECONDS) as caseload:
        for _ in range(calls):
            with pytest.raises(grpc.RpcError):
                caseload.therapists.GetTherapist(therapist_service_pb2.GetTherapistRequest())
    assert calls < len(peer.attempts) < calls + 500


def test_an_overloaded_server_is_retried_until_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_locks(monkeypatch)
    monkeypatch.setattr(retry_delays, "MIN_DELAY_SECONDS", 0.5)
    monkeypatch.setattr(retry_delays, "SPACING_SECONDS", 0.5)  # many times what a write takes
    monkeypatch.setattr(retry_delays, "MAX_DELAY_SECONDS", 30.0)
    log = LogReader(tmp_path / "access.log")
    settings = {"threads": 1, "max_queue_depth": 1, "queue_timeout_seconds": NEVER_SECONDS}
    with (
        serving(tmp_path, access_log=log.path, **settings) as server,
        connect(server.address, timeout=HUNG_SECONDS) as caseload,
    ):
        with holding_the_lock(f"sqlite:///{tmp_path}/caseload.db"):
            patient = resources_pb2.Patient(display_name="Bob Ray")
            request = patient_service_pb2.CreatePatientRequest(patient=patient)
            calls = [caseload.patients.CreatePatient.future(request) for _ in range(4)]
            eventually(lambda: [line["reason"] for line in log.lines()].count("OVERLOADED") >= 2)
            assert not any(call.done() for call in calls)
        created_ids = {call.result().patient.patient_id for call in calls}
        eventually(lambda: [line["code"] for line in log.lines()].count("OK") == 4)
    assert len(created_ids) == 4


def test_more_clients_than_can_watch_health_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HEALTH_WATCHES", 2)
    with serving(tmp_path) as server, ExitStack() as stack:
        clients = [stack.enter_context(connect(server.address)) for _ in range(6)]
        calls = [client.patients.ListPatients.future(patient_service_pb2.ListPatientsRequest()) for client in clients]
        assert [call.code() for call in calls] == [StatusCode.OK] * 6
