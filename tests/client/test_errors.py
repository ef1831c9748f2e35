"""error_info(): the reason and details of a failed call, without another package."""

from collections.abc import Callable

import grpc
import pytest
from caseload.client import Caseload, ErrorDetails, connect, error_info
from caseload.v1 import patient_service_pb2, resources_pb2, therapist_service_pb2
from caseload_server.rpc.server import CaseloadServer

from tests.client.fake_server import FakeServer
from tests.support.servers import refusal


def refused(call: Callable[..., object], request: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value


def test_error_info_has_what_the_server_sent(server: CaseloadServer) -> None:
    pb = therapist_service_pb2
    with connect(server.address) as caseload:
        missing = refused(caseload.therapists.GetTherapist, pb.GetTherapistRequest(therapist_id="missing"))
        assert error_info(missing) == ErrorDetails("THERAPIST_NOT_FOUND", dict(refusal(missing).metadata))
        blank = refused(caseload.therapists.CreateTherapist, pb.CreateTherapistRequest(therapist_id="A"))
        assert error_info(blank).reason == "INVALID_FIELD"
        assert list(error_info(blank).fields) == refusal(blank).fields
        assert all(error_info(blank).fields.values())
        assert error_info(blank).retry_after_seconds is None


def at_capacity(caseload: Caseload) -> grpc.RpcError:
    """The error of an assignment beyond the capacity."""
    pb = therapist_service_pb2
    therapist = resources_pb2.Therapist(display_name="Ann Lee", max_active_patients=1)
    caseload.therapists.CreateTherapist(pb.CreateTherapistRequest(therapist_id="t1", therapist=therapist))
    patient = resources_pb2.Patient(display_name="Bob Ray")
    for one in ("p1", "p2"):
        caseload.patients.CreatePatient(patient_service_pb2.CreatePatientRequest(patient_id=one, patient=patient))
    caseload.therapists.AssignPatient(pb.AssignPatientRequest(therapist_id="t1", patient_id="p1"))
    return refused(caseload.therapists.AssignPatient, pb.AssignPatientRequest(therapist_id="t1", patient_id="p2"))


def test_error_info_has_the_metadata_of_the_reason(server: CaseloadServer) -> None:
    with connect(server.address) as caseload:
        assert error_info(at_capacity(caseload)) == ErrorDetails(
            "THERAPIST_AT_CAPACITY", {"limit": "1", "current": "1"}
        )


def test_an_error_that_is_not_from_caseload_has_no_reason(peer: FakeServer) -> None:
    with connect(peer.answer_with(grpc.StatusCode.NOT_FOUND).address) as caseload:
        error = refused(caseload.therapists.GetTherapist, therapist_service_pb2.GetTherapistRequest())
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error_info(error) == ErrorDetails()
