"""The lists that scale.py measures: each filter alone, each order, searches by name, totals and versions."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from caseload.v1.assignment_service_pb2 import ListAssignmentsRequest
from caseload.v1.change_service_pb2 import ListChangesRequest
from caseload.v1.patient_service_pb2 import (
    ListPatientsRequest,
    ListPatientTherapistsRequest,
    ListPatientVersionsRequest,
)
from caseload.v1.resources_pb2 import Assignment
from caseload.v1.therapist_service_pb2 import ListTherapistPatientsRequest, ListTherapistsRequest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks import synthetic_data
from benchmarks.synthetic_data import RARE_SPECIALTY, START_US, SYSTEM, DataSet, person_id
from benchmarks.table import Target

TARGET: Final = Target(1.2, at_most=True)
NAME_TARGET: Final = Target(2.0, at_most=True)
"""Of searches by name."""
NOW: Final = Timestamp(seconds=1_767_225_600)
"""2026-01-01: after every end."""
FIRST_TIME: Final = Timestamp(seconds=START_US // 1_000_000)
"""Before every change, so that versions have what was known."""
_PAGE: Final = 10
_ORDERS: Final = ("display_name", "display_name desc", "update_time", "update_time desc")
_ENDED: Final = [Assignment.STATE_ENDED]


class ListCall(NamedTuple):
    """The first page of a list, and how to measure it."""

    title: str
    request: Message
    target: Target | None = TARGET
    """None for lists whose price grows with what they match."""
    pages: tuple[int, ...] = (1, 100)
    """The pages to measure. Lists with few matches have only the first."""


def therapist_id(number: int) -> str:
    """The id of a therapist in a data set."""
    return person_id("a", number)


def patient_id(number: int) -> str:
    """The id of a patient in a data set."""
    return person_id("b", number)


def lists() -> Iterator[ListCall]:
    """All lists."""
    yield from _therapists()
    yield from _patients()
    yield from _names()
    yield from _orders()
    yield from _totals()
    yield from _caseloads()
    yield from _assignments()
    yield from _changes()


def _therapists() -> Iterator[ListCall]:
    yield _list_therapists("ListTherapists")
    yield _list_therapists("ListTherapists by status", statuses=[2])
    yield _list_therapists("ListTherapists by two statuses", statuses=[2, 3])
    yield _list_therapists("ListTherapists by specialty", specialties=[RARE_SPECIALTY])
    yield _list_therapists("ListTherapists by common specialty", specialties=["hand-therapy"])
    yield _list_therapists("ListTherapists unassigned", unassigned=True)
    yield _list_therapists("ListTherapists accepting_patients", accepting_patients=True)
    yield _list_therapists("ListTherapists by email", email=synthetic_data.RARE_EMAIL)
    for title, filter_ in _few("ListTherapists"):
        yield _list_therapists(title, **filter_)._replace(pages=(1,))


def _patients() -> Iterator[ListCall]:
    year, month, day = map(int, synthetic_data.RARE_BIRTH_DATE.split("-"))
    yield _list_patients("ListPatients")
    yield _list_patients("ListPatients by status", statuses=[2])
    yield _list_patients("ListPatients unassigned", unassigned=True)
    yield _list_patients("ListPatients without_primary", without_primary=True)
    yield _list_patients("ListPatients by birth_date", birth_date={"year": year, "month": month, "day": day})
    yield _list_patients("ListPatients by birth_date of a month", birth_date={"year": year, "month": month})
    yield _list_patients("ListPatients by birth_date of a year", birth_date={"year": year})
    yield _list_patients("ListPatients by phone_number", phone_number=synthetic_data.RARE_PHONE_NUMBER)
    yield _list_patients("ListPatients by email", email=synthetic_data.RARE_EMAIL)
    for title, filter_ in _few("ListPatients"):
        yield _list_patients(title, **filter_)._replace(pages=(1,))


def _few(rpc: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Filters with few matches."""
    yield f"{rpc} by identifier", {"identifier": {"system": SYSTEM, "value": "1234"}}
    yield f"{rpc} by identifier_value", {"identifier_value": "1234"}
    yield f"{rpc} deleted", {"deleted_only": True}


def _names() -> Iterator[ListCall]:
    for title, text in {
        "a common word": "chen",
        "the beginning of a common word": "ch",
        "the beginning of many words": "12",
        "a common character": "王",
        "a rare character": "丆",
        "two words": "chen kowalski",
    }.items():
        found = _list_patients(f"ListPatients by {title}", name_prefix=text)
        yield found._replace(target=NAME_TARGET, pages=(1,))
    rare = _list_patients("ListPatients by four words", name_prefix="chen muller ludenscheidt 12")
    yield rare._replace(target=None, pages=(1,))


def by_name(data: DataSet, *, is_whole: bool) -> Message:
    """A search for the last patient by the whole name, or by the one word of it that no other patient has."""
    name = synthetic_data.name(data.people - 1)
    return _list_patients("", name_prefix=name if is_whole else name.split()[-1]).request


def _orders() -> Iterator[ListCall]:
    for order in _ORDERS:
        title = f"in the order of {order}"
        yield ListCall(f"ListPatients {title}", ListPatientsRequest(page_size=_PAGE, order_by=order))
        yield ListCall(f"ListTherapists {title}", ListTherapistsRequest(page_size=_PAGE, order_by=order))
    for name, filter_ in (("name", {"name_prefix": "chen"}), ("status", {"statuses": [1]})):
        title = f"ListPatients by {name} and order"
        request = ListPatientsRequest(page_size=_PAGE, order_by="display_name", filter=filter_)  # type: ignore[arg-type]
        yield ListCall(title, request, target=None, pages=(1,))


def _totals() -> Iterator[ListCall]:
    everyone = ListPatientsRequest(page_size=_PAGE, include_total_size=True)
    yield ListCall("ListPatients with the total", everyone, target=None, pages=(1,))
    few = ListPatientsRequest(page_size=_PAGE, include_total_size=True, filter={"statuses": [2]})  # type: ignore[arg-type]
    yield ListCall("ListPatients by status with the total", few, pages=(1,))


def _caseloads() -> Iterator[ListCall]:
    of_therapist = ListTherapistPatientsRequest(therapist_id=therapist_id(0), page_size=_PAGE)
    yield ListCall("ListTherapistPatients", of_therapist)
    of_patient = ListPatientTherapistsRequest(patient_id=patient_id(0), page_size=_PAGE, states=_ENDED)
    yield ListCall("ListPatientTherapists", of_patient)
    for order in ("display_name", "start_time desc"):
        for rpc, request in (("ListTherapistPatients", of_therapist), ("ListPatientTherapists", of_patient)):
            ordered: Any = type(request)()
            ordered.CopyFrom(request)
            ordered.order_by = order
            yield ListCall(f"{rpc} in the order of {order}", ordered)


def _assignments() -> Iterator[ListCall]:
    of_therapist, of_patient = {"therapist_id": therapist_id(0)}, {"patient_id": patient_id(0)}
    yield _list_assignments("ListAssignments")
    yield _list_assignments("ListAssignments ended", states=_ENDED)
    yield _list_assignments("ListAssignments by therapist", **of_therapist)
    yield _list_assignments("ListAssignments by patient", states=_ENDED, **of_patient)
    of_role = _list_assignments("ListAssignments by role", roles=[synthetic_data.RARE_ROLE])
    yield of_role._replace(pages=(1,))
    of_roles = _list_assignments("ListAssignments by roles, ended", roles=[1, synthetic_data.RARE_ROLE], states=_ENDED)
    yield of_roles._replace(pages=(1,))
    yield _list_assignments("ListAssignments as of a time", as_of_time=NOW)
    yield _list_assignments("ListAssignments of a therapist as of a time", as_of_time=NOW, **of_therapist)
    for title, filter_ in {"therapist": of_therapist, "patient": of_patient}.items():
        known = _list_assignments(f"ListAssignments of a {title} as known at a time", as_of_time=NOW, **filter_)
        known.request.known_at.CopyFrom(FIRST_TIME)  # type: ignore[attr-defined]
        yield known._replace(target=None, pages=(1,))


def _changes() -> Iterator[ListCall]:
    yield ListCall("ListPatientVersions", ListPatientVersionsRequest(patient_id=patient_id(0), page_size=_PAGE))
    for title, filter_ in {
        "ListChanges": {},
        "ListChanges by actor": {"actor": synthetic_data.RARE_ACTOR},
        "ListChanges by patient": {"patient_id": patient_id(0)},
    }.items():
        yield ListCall(title, ListChangesRequest(page_size=_PAGE, filter=filter_))  # type: ignore[arg-type]


def _list_therapists(title: str, **filter_: Any) -> ListCall:
    return ListCall(title, ListTherapistsRequest(page_size=_PAGE, filter=filter_))  # type: ignore[arg-type]


def _list_patients(title: str, **filter_: Any) -> ListCall:
    return ListCall(title, ListPatientsRequest(page_size=_PAGE, filter=filter_))  # type: ignore[arg-type]


def _list_assignments(title: str, **filter_: Any) -> ListCall:
    return ListCall(title, ListAssignmentsRequest(page_size=_PAGE, filter=filter_))  # type: ignore[arg-type]
