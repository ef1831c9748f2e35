"""Helpers that the store's tests share: create a record, dump every table, race."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from caseload_server.domain import enums, errors, requests
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import CallContext, CaseloadQuery, PageRequest, RecordQuery, Update
from caseload_server.domain.results import Page
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.protocol import Row, Value
from caseload_server.store.portability.verify import BrokenRule, broken_rules
from caseload_server.store.portability.version_check import broken_versions
from caseload_server.store.records import RecordKind

from tests.support.waiting import join

T = TypeVar("T")
AnyKind = RecordKind[Any]
Tables = dict[str, list[Row]]

CALL = CallContext(actor="reception", method="/caseload.v1.TherapistService/Test")
VALIDATE = CALL._replace(validate_only=True)
ALL = PageRequest(1000, "")
TABLES = (
    "store",
    "therapist",
    "patient",
    "therapist_identifier",
    "patient_identifier",
    "therapist_name_word",
    "patient_name_word",
    "therapist_specialty",
    "same_person",
    "assignment",
    "therapist_version",
    "patient_version",
    "assignment_version",
    "change_set",
    "change",
    "request",
    "purged",
)

both_kinds = pytest.mark.parametrize("kind", [THERAPIST, PATIENT], ids=["therapist", "patient"])


def other(kind: AnyKind) -> AnyKind:
    """The other kind of record."""
    return PATIENT if kind is THERAPIST else THERAPIST


def request(request_id: str, fingerprint: bytes = b"the request") -> CallContext:
    """A call with a request_id, which the store remembers."""
    return CALL._replace(request_id=request_id, fingerprint=fingerprint)


def make(store: RelationshipStore, kind: AnyKind, record_id: str, **fields: str | int | None) -> Any:
    """Creates a record with a name and these columns."""
    return store.create(kind, record_id, {"display_name": "Ada Lovelace", **fields}, CALL).record


def make_pair(store: RelationshipStore) -> None:
    """Creates a therapist t and a patient p."""
    make(store, THERAPIST, "t")
    make(store, PATIENT, "p")


def update(store: RelationshipStore, kind: AnyKind, record_id: str, **fields: str | int | None) -> Any:
    """Sets columns without an etag check."""
    return store.update(kind, Update(record_id, fields), CALL).record


def delete(store: RelationshipStore, kind: AnyKind, record_id: str, **flags: Any) -> Any:
    """Soft-deletes."""
    return store.delete(kind, requests.Delete(record_id, **flags), CALL)


def assign(store: RelationshipStore, therapist_id: str = "t", patient_id: str = "p", **order: Any) -> Assignment:
    """Assigns the pair. Returns the assignment."""
    return store.assign(requests.Assign(therapist_id, patient_id, **order), CALL).record


def unassign(store: RelationshipStore, therapist_id: str = "t", patient_id: str = "p", **order: Any) -> Assignment:
    """Ends the pair's period. Returns the assignment."""
    ended = store.unassign(requests.Unassign(therapist_id, patient_id, **order), CALL).record
    assert ended is not None
    return ended


def count(store: RelationshipStore, kind: AnyKind, record_id: str) -> int:
    """The record's stored count of active assignments."""
    counted: int = getattr(store.get(kind, record_id), kind.count_column)
    return counted


def ids(store: RelationshipStore, kind: AnyKind, **query: Any) -> list[str]:
    """The ids of all records that match."""
    return [record[0] for record in store.list_records(kind, RecordQuery(**query), ALL).records]


def walk(store: RelationshipStore, kind: AnyKind, query: RecordQuery, size: int) -> list[list[Any]]:
    """Every page of a list."""
    pages, after = [], ""
    for _ in range(1000):
        page = store.list_records(kind, query, PageRequest(size, after))
        pages.append(page.records)
        after = page.next_after
        if not after:
            return pages
    raise AssertionError("the list does not end")


def assigned(
    store: RelationshipStore, kind: AnyKind, query: CaseloadQuery, page: PageRequest = ALL
) -> Page[tuple[Assignment, Any]]:
    """A page of the assignments of one side."""
    return (store.list_therapist_patients if kind is THERAPIST else store.list_patient_therapists)(query, page)


def history(store: RelationshipStore, patient_id: str = "p") -> list[Assignment]:
    """Every period of a patient, by start."""
    query = CaseloadQuery(patient_id, states=(enums.STATE_ACTIVE, enums.STATE_ENDED))
    return sorted((entry[0] for entry in store.list_patient_therapists(query, ALL).records), key=lambda a: a.start_us)


def in_force(store: RelationshipStore, at_us: int, kind: AnyKind = PATIENT, record_id: str = "p") -> list[str]:
    """The assignments in force at a time."""
    return [entry[0].assignment_id for entry in assigned(store, kind, CaseloadQuery(record_id, as_of_us=at_us)).records]


def run(store: RelationshipStore, sql: str, parameters: dict[str, Value] | None = None) -> list[Row]:
    """Runs one statement without the store's checks; only the database's constraints apply."""
    return store._database.write(lambda transaction: transaction.run(sql, parameters))


def dump(store: RelationshipStore) -> Tables:
    """All rows of the database, without requests that have no caller-chosen id."""
    tables = {table: sorted(run(store, f"SELECT * FROM {table}"), key=repr) for table in TABLES}
    return tables | {"request": [row for row in tables["request"] if not row[1].startswith("server:")]}


def broken(store: RelationshipStore) -> list[BrokenRule]:
    """The rules between rows that `caseload verify` finds broken."""
    with store._database.snapshot() as transaction:
        return [*broken_rules(transaction), *broken_versions(transaction)]


def head(store: RelationshipStore) -> int:
    """The number of the newest revision."""
    return int(run(store, "SELECT head_revision FROM store")[0][0])


def race(work: Callable[[int], T], threads: int = 32) -> tuple[list[T], list[Exception]]:
    """Runs work(0), work(1), ... at once. Returns the results and the store's errors."""
    results: list[T] = []
    refusals: list[Exception] = []
    barrier = threading.Barrier(threads)

    def one(number: int) -> None:
        barrier.wait()
        try:
            results.append(work(number))
        except errors.DomainError as error:
            refusals.append(error)

    runners = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
    for runner in runners:
        runner.start()
    join(*runners)
    assert len(results) + len(refusals) == threads
    return results, refusals
