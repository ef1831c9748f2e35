"""Batches: writes of many entries in one transaction, in order, all or nothing."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from caseload_server.domain import enums, errors, requests
from caseload_server.domain.records import Assignment, P
from caseload_server.domain.requests import NewRecord
from caseload_server.store import assignments, finished_periods, identifiers, records
from caseload_server.store.records import PATIENT, THERAPIST, RecordKind
from caseload_server.store.write_transaction import Write

_SELECT_BY_IDS = f"""
SELECT {assignments.COLUMNS} FROM assignment AS period WHERE assignment_id IN (SELECT atom FROM json_each(:ids))"""
_SELECT_PRIMARY_THERAPISTS = f"""
SELECT therapist_id FROM assignment
WHERE patient_id IN (SELECT atom FROM json_each(:ids)) AND end_us IS NULL AND role = {enums.ROLE_PRIMARY}"""


def assign_one(write: Write, request: requests.Assign) -> tuple[list[Assignment], bool]:
    """Begins a period, or records a finished one. Result and errors as assignments.assign."""
    return (assignments.assign if request.end_us is None else finished_periods.record)(write, request)


def assign(write: Write, batch: Sequence[requests.Assign]) -> tuple[list[Assignment], int]:
    """Assigns each entry in order. Returns the periods, and a mask in which bit n says whether entry n is new.

    The periods have their state after the last entry, which may have replaced one of an earlier entry. Raises the
    errors of assign_one, with the index of the entry.
    """
    _lock(write, batch)
    ids, created = [], 0
    entries: dict[str, int] = {}  # by the ids of the periods that they began or recorded
    for index, request in enumerate(batch):
        try:
            periods, is_new = assign_one(write, request)
        except errors.DomainError as error:
            raise _name_entries(error.of_entry(index), entries) from None
        ids.append(periods[0].assignment_id)
        created |= is_new << index
        if is_new:
            entries |= dict.fromkeys((period.assignment_id for period in periods), index)
    return _load(write, ids), created


def _name_entries(error: errors.DomainError, entries: dict[str, int]) -> errors.DomainError:
    """Returns the error with the position of an earlier entry instead of the id of its period, which is rolled back."""
    other = entries.get(error.metadata.get("assignment_id", ""))
    if other is not None:
        del error.metadata["assignment_id"]
        error.metadata["other_index"] = str(other)
    return error


def _lock(write: Write, batch: Iterable[requests.Assign]) -> None:
    """Locks all patients, then all therapists, each in id order, so that no two writers deadlock.

    Primary therapists, whom an entry may replace, are locked too. They cannot change while the patients are locked.
    """
    if write.lock_clause:
        patient_ids = {request.patient_id for request in batch}
        records.lock(write, PATIENT, patient_ids)
        primaries = write.run(_SELECT_PRIMARY_THERAPISTS, {"ids": json.dumps(sorted(patient_ids))})
        therapist_ids = {request.therapist_id for request in batch} | {row[0] for row in primaries}
        records.lock(write, THERAPIST, therapist_ids)


def _load(write: Write, ids: list[str]) -> list[Assignment]:
    rows = write.run(_SELECT_BY_IDS, {"ids": json.dumps(ids)})
    found = {row[0]: Assignment._make(row) for row in rows}
    return [found[assignment_id] for assignment_id in ids]


def create(write: Write, kind: RecordKind[P], batch: Sequence[NewRecord]) -> list[P]:
    """Creates each entry. Raises the error of records.create for the first entry that fails, with its index.

    It inserts all ids and then all identifiers, each in their order, so that no two writers deadlock.
    """
    built, failures = _build(write, kind, batch)
    _insert_records(write, kind, built, failures)
    _insert_identifiers(write, kind, built, failures)
    if failures:
        index = min(failures)
        raise failures[index].of_entry(index)
    for record in built:
        records.update_words(write, kind, record)
        write.record_change(enums.CHANGE_CREATED, record)
    return built


def _build(
    write: Write, kind: RecordKind[P], batch: Sequence[NewRecord]
) -> tuple[list[P], dict[int, errors.DomainError]]:
    """Returns the records up to the first that is too large, and the error of that one by its index."""
    built: list[P] = []
    try:
        for entry in batch:
            built.append(records.build(write, kind, *entry))  # noqa: PERF401 - those before an error are needed
    except errors.InvalidField as error:
        return built, {len(built): error}
    return built, {}


def _insert_records(
    write: Write, kind: RecordKind[Any], built: list[Any], failures: dict[int, errors.DomainError]
) -> None:
    """Inserts the records in the order of their ids. Adds an error for each whose id is taken."""
    entries: dict[str, int] = {}  # the first entry with each id
    for index, record in enumerate(built):
        if (first := entries.setdefault(record[0], index)) != index:
            failures[index] = errors.IdTaken(other_index=first)
    for _, index in sorted(entries.items()):
        if not records.insert(write, kind, built[index]):
            failures[index] = errors.IdTaken()


def _insert_identifiers(
    write: Write, kind: RecordKind[Any], built: list[Any], failures: dict[int, errors.DomainError]
) -> None:
    """Inserts the identifiers of all records before the first failure, in the order in which other writers do.

    Adds an error for each record whose identifier is taken.
    """
    before = built[: min(failures, default=None)]
    entries = [(*pair, index) for index, record in enumerate(before) for pair in json.loads(record.identifiers)]
    first: dict[tuple[str, str], int] = {}  # the first entry with each key
    for system, value, index in entries:
        first.setdefault(identifiers.unique_key((system, value)), index)
    for system, value, index in sorted(entries, key=identifiers.unique_key):
        holder = first[identifiers.unique_key((system, value))]
        if holder != index:
            failures.setdefault(index, errors.IdentifierTaken(other_index=holder))
        elif not identifiers.insert_one(write, kind.name, built[index], (system, value)):
            failures.setdefault(index, records.identifier_taken(write, kind, system, value))
