"""Tests of a team's own code against Caseload. docs/testing.md describes the fixtures."""

from collections.abc import Iterator

import grpc
import pytest
from caseload.client import Caseload, connect, error_info
from caseload.testing import CaseloadForTests
from caseload.v1.therapist_service_pb2 import AssignPatientRequest


def refer(caseload: Caseload, patient_id: str, therapist_id: str) -> str:
    """The code under test: refers a patient to a therapist, and returns "referred", "full" or "later"."""
    request = AssignPatientRequest(therapist_id=therapist_id, patient_id=patient_id)
    try:
        caseload.therapists.AssignPatient(request)
    except grpc.RpcError as error:
        if error_info(error).reason == "THERAPIST_AT_CAPACITY":
            return "full"
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return "later"
        raise
    return "referred"


@pytest.fixture
def caseload(caseload_store: CaseloadForTests) -> Iterator[Caseload]:
    with connect(caseload_store.address) as client:
        yield client


def test_a_patient_is_referred(caseload_store: CaseloadForTests, caseload: Caseload) -> None:
    therapist, patient = caseload_store.add_therapist("Ada Roe"), caseload_store.add_patient("Jane Doe")
    assert refer(caseload, patient.patient_id, therapist.therapist_id) == "referred"


def test_a_therapist_at_capacity_gets_no_patient(caseload_store: CaseloadForTests, caseload: Caseload) -> None:
    therapist = caseload_store.add_therapist(max_active_patients=1)
    caseload_store.assign(therapist, caseload_store.add_patient())
    another = caseload_store.add_patient()
    assert refer(caseload, another.patient_id, therapist.therapist_id) == "full"


def test_a_short_failure_is_retried(caseload_store: CaseloadForTests, caseload: Caseload) -> None:
    therapist, patient = caseload_store.add_therapist(), caseload_store.add_patient()
    with caseload_store.failing("STORE_UNAVAILABLE", calls=2):
        assert refer(caseload, patient.patient_id, therapist.therapist_id) == "referred"


def test_a_long_failure_is_reported(caseload_store: CaseloadForTests, caseload: Caseload) -> None:
    therapist, patient = caseload_store.add_therapist(), caseload_store.add_patient()
    with caseload_store.failing("STORE_UNAVAILABLE"):
        assert refer(caseload, patient.patient_id, therapist.therapist_id) == "later"


def test_a_restart_causes_no_error(caseload_store: CaseloadForTests, caseload: Caseload) -> None:
    therapist, patient = caseload_store.add_therapist(), caseload_store.add_patient()
    caseload_store.restart()
    assert refer(caseload, patient.patient_id, therapist.therapist_id) == "referred"
