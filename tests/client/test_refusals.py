"""why(): the reason of a failed call, without another package."""

from collections.abc import Callable

import grpc
import pytest
from caseload.client import Caseload, Refusal, connect, why
from caseload.v1 import patient_service_pb2, resources_pb2, therapist_service_pb2
from caseload_server.rpc.server import CaseloadServer

from tests.client.answering import Answering
from tests.running import refusal


def refused(call: Callable[..., object], request: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value


def test_it_says_what_the_server_said(server: CaseloadServer) -> None:
    pb = therapist_service_pb2
    with connect(server.address) as caseload:
        missing = refused(caseload.therapists.GetTherapist, pb.GetTherapistRequest(therapist_id="nobody"))
        assert why(missing) == Refusal("THERAPIST_NOT_FOUND", dict(refusal(missing).metadata))
        blank = refused(caseload.therapists.CreateTherapist, pb.CreateTherapistRequest(therapist_id="A"))
        assert why(blank).reason == "INVALID_FIELD"
        assert list(why(blank).fields) == refusal(blank).fields
        assert all(why(blank).fields.values())
        assert why(blank).retry_after_seconds is None


def filled(caseload: Caseload) -> grpc.RpcError:
    """Refused for want of capacity."""
    pb = therapist_service_pb2
    therapist = resources_pb2.Therapist(display_name="Ann Lee", max_active_patients=1)
    caseload.therapists.CreateTherapist(pb.CreateTherapistRequest(therapist_id="t1", therapist=therapist))
    patient = resources_pb2.Patient(display_name="Bob Ray")
    for one in ("p1", "p2"):
        caseload.patients.CreatePatient(patient_service_pb2.CreatePatientRequest(patient_id=one, patient=patient))
    caseload.therapists.AssignPatient(pb.AssignPatientRequest(therapist_id="t1", patient_id="p1"))
    return refused(caseload.therapists.AssignPatient, pb.AssignPatientRequest(therapist_id="t1", patient_id="p2"))


def test_what_comes_with_a_reason_is_there(server: CaseloadServer) -> None:
    with connect(server.address) as caseload:
        assert why(filled(caseload)) == Refusal("THERAPIST_AT_CAPACITY", {"limit": "1", "current": "1"})


def test_what_another_than_caseload_said_has_no_reason(peer: Answering) -> None:
    with connect(peer.told(grpc.StatusCode.NOT_FOUND).address) as caseload:
        error = refused(caseload.therapists.GetTherapist, therapist_service_pb2.GetTherapistRequest())
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert why(error) == Refusal()
