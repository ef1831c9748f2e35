"""pages(): every page of a list, in both clients."""

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest
from caseload.client import aio, connect, pages
from caseload.v1 import change_service_pb2, patient_service_pb2, resources_pb2
from caseload_server.rpc.server import CaseloadServer

from tests.client.aio.run import run
from tests.support.waiting import HUNG_SECONDS

LIST = patient_service_pb2.ListPatientsRequest(page_size=2)


@pytest.fixture
def patients(server: CaseloadServer) -> list[str]:
    """The ids of five patients, in their order."""
    request = patient_service_pb2.CreatePatientRequest(patient=resources_pb2.Patient(display_name="Bob Ray"))
    with connect(server.address) as caseload:
        return [caseload.patients.CreatePatient(request).patient.patient_id for _ in range(5)]


Method = Callable[[Any], Any]
ReadPages = Callable[[str, str, str, Any], list[Any]]


def sync_pages(address: str, service: str, method: str, request: Any) -> list[Any]:
    with connect(address) as caseload:
        found: Iterator[Any] = pages(getattr(getattr(caseload, service), method), request)
        return list(found)


def aio_pages(address: str, service: str, method: str, request: Any) -> list[Any]:
    async def read() -> list[Any]:
        async with aio.connect(address) as caseload:
            found: AsyncIterator[Any] = aio.pages(getattr(getattr(caseload, service), method), request)
            return [page async for page in found]

    return run(read())


both = pytest.mark.parametrize("read", [sync_pages, aio_pages])


@both
def test_pages_yields_each_page_and_does_not_change_the_request(
    server: CaseloadServer, patients: list[str], read: ReadPages
) -> None:
    before = LIST.SerializeToString()
    found = read(server.address, "patients", "ListPatients", LIST)
    assert [[one.patient_id for one in page.patients] for page in found] == [patients[:2], patients[2:4], patients[4:]]
    assert LIST.SerializeToString() == before


@both
def test_pages_of_a_list_in_another_order_have_every_record(
    server: CaseloadServer, patients: list[str], read: ReadPages
) -> None:
    """All five have the same name, so their ids decide."""
    request = patient_service_pb2.ListPatientsRequest(
        page_size=2, order_by="display_name desc", include_total_size=True
    )
    found = read(server.address, "patients", "ListPatients", request)
    assert [one.patient_id for page in found for one in page.patients] == patients[::-1]
    assert [page.total_size for page in found] == [5, 5, 5]


@both
@pytest.mark.usefixtures("patients")
def test_pages_of_the_change_log_end_at_its_head(server: CaseloadServer, read: ReadPages) -> None:
    request = change_service_pb2.ListChangesRequest(page_size=2)
    found = read(server.address, "changes", "ListChanges", request)
    assert [len(page.change_sets) for page in found] == [2, 2, 1]


@both
def test_an_empty_list_is_one_page(server: CaseloadServer, read: ReadPages) -> None:
    assert len(read(server.address, "patients", "ListPatients", LIST)) == 1
    assert len(read(server.address, "changes", "ListChanges", change_service_pb2.ListChangesRequest())) == 1


def test_the_next_page_is_asked_for_when_it_is_needed(server: CaseloadServer, patients: list[str]) -> None:
    asked: list[str] = []

    def method(request: patient_service_pb2.ListPatientsRequest) -> patient_service_pb2.ListPatientsResponse:
        asked.append(request.page_token)
        return limited(request)

    with connect(server.address) as caseload:
        limited = partial(caseload.patients.ListPatients, timeout=HUNG_SECONDS)
        found = pages(method, LIST)
        assert [one.patient_id for one in next(found).patients] == patients[:2]
        assert len(asked) == 1


@both
def test_a_response_that_is_no_page_is_an_error(server: CaseloadServer, patients: list[str], read: ReadPages) -> None:
    request = patient_service_pb2.BatchGetPatientsRequest(patient_ids=patients)
    with pytest.raises(ValueError, match="BatchGetPatientsResponse is no page of a list"):
        read(server.address, "patients", "BatchGetPatients", request)
