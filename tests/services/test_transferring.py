"""The fields of TransferPatients that its rules, tested in the store, cannot see ignored on the way there."""

from collections.abc import Iterator

import pytest
from caseload_server.rpc.server import CaseloadServer

from tests.clinic import Clinic, refused
from tests.services.calling import honours


@pytest.fixture
def clinic(server: CaseloadServer) -> Iterator[Clinic]:
    """Therapists t1 and t2; t1 treats p1 to p3."""
    with Clinic(server.address) as opened:
        opened.therapists("t1", "t2")
        opened.patients("p1", "p2", "p3")
        for patient_id in ("p1", "p2", "p3"):
            opened.assign("t1", patient_id)
        yield opened


@honours("TransferPatientsRequest.patient_ids")
def test_only_the_patients_listed_move_in_their_order_and_once(clinic: Clinic) -> None:
    answer = clinic.transfer("t1", "t2", "p3", "p1", "p3")
    assert [one.patient_id for one in answer.ended] == [one.patient_id for one in answer.active] == ["p3", "p1"]
    assert [one.patient_id for one in clinic.listed(therapist_id="t1")] == ["p2"]
    found = refused(clinic.transfer, "t1", "t2", "p2", "p1")
    assert (found.reason, found.metadata) == ("ASSIGNMENT_NOT_FOUND", {"missing": "1"})


@honours("TransferPatientsRequest.ignore_capacity")
def test_a_full_therapist_takes_over_only_when_capacity_is_ignored(clinic: Clinic) -> None:
    clinic.send("UpdateTherapist", therapist={"therapist_id": "t2", "max_active_patients": 2})
    found = refused(clinic.transfer)
    assert (found.reason, found.metadata) == ("THERAPIST_AT_CAPACITY", {"limit": "2", "current": "0"})
    assert len(clinic.listed(therapist_id="t1")) == 3
    assert len(clinic.transfer(ignore_capacity=True).active) == 3
