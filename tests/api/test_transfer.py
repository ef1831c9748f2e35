"""TransferPatients passes its fields to the store; the store tests cover the rules."""

from collections.abc import Iterator

import pytest
from caseload_server.rpc.server import CaseloadServer

from tests.api.client_calls import covers
from tests.support.api_driver import ApiDriver, refused


@pytest.fixture
def api(server: CaseloadServer) -> Iterator[ApiDriver]:
    """Therapists t1 and t2; t1 treats p1 to p3."""
    with ApiDriver(server.address) as opened:
        opened.therapists("t1", "t2")
        opened.patients("p1", "p2", "p3")
        for patient_id in ("p1", "p2", "p3"):
            opened.assign("t1", patient_id)
        yield opened


@covers("TransferPatientsRequest.patient_ids")
def test_a_transfer_moves_only_the_listed_patients_once_in_order(api: ApiDriver) -> None:
    answer = api.transfer("t1", "t2", "p3", "p1", "p3")
    assert [one.patient_id for one in answer.ended] == [one.patient_id for one in answer.active] == ["p3", "p1"]
    assert [one.patient_id for one in api.listed(therapist_id="t1")] == ["p2"]
    found = refused(api.transfer, "t1", "t2", "p2", "p1")
    assert (found.reason, found.metadata) == ("ASSIGNMENT_NOT_FOUND", {"missing": "1"})


@covers("TransferPatientsRequest.ignore_capacity")
def test_a_transfer_above_capacity_requires_ignore_capacity(api: ApiDriver) -> None:
    api.send("UpdateTherapist", therapist={"therapist_id": "t2", "max_active_patients": 2})
    found = refused(api.transfer)
    assert (found.reason, found.metadata) == ("THERAPIST_AT_CAPACITY", {"limit": "2", "current": "0"})
    assert len(api.listed(therapist_id="t1")) == 3
    assert len(api.transfer(ignore_capacity=True).active) == 3
