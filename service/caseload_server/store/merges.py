"""Merges of two records of one person, and their reversal. History is not rewritten: ended periods do not change.

The active periods move to the target. The column merged_into_patient_id links the source to it. The table same_person
has the records that such links join, so that reads do not follow them. Every write that changes a link locks both of
its ends, in id order.
"""

import json
from typing import Any

from caseload_server.domain import enums, errors, limits, requests
from caseload_server.domain.records import Assignment, Patient
from caseload_server.store import assignments, expiry, record_sizes, records
from caseload_server.store.backends.protocol import SerializationConflict, Transaction, Value
from caseload_server.store.counts import CountChanges
from caseload_server.store.identifiers import release_keys, unique_key
from caseload_server.store.records import PATIENT, THERAPIST
from caseload_server.store.write_transaction import Write

SELECT_SAME_PERSON = """
SELECT other.patient_id FROM same_person AS own JOIN same_person AS other ON other.person_id = own.person_id
WHERE own.patient_id = :patient_id"""
_COUNT_RECORDS = "SELECT COUNT(*) FROM same_person WHERE person_id = :patient_id"
_JOIN_PERSONS = "UPDATE same_person SET person_id = :target WHERE person_id = :source"
_ADD_PERSON = """
INSERT INTO same_person (patient_id, person_id) VALUES (:source, :target), (:target, :target)
ON CONFLICT (patient_id) DO NOTHING"""
_SPLIT_PERSON = """
WITH RECURSIVE part (patient_id) AS (
    SELECT patient_id FROM patient WHERE patient_id = :source
    UNION SELECT merged.patient_id FROM part
    JOIN patient AS merged ON merged.merged_into_patient_id = part.patient_id AND merged.merged_into_patient_id <> ''
)
UPDATE same_person SET person_id = :source WHERE patient_id IN (SELECT patient_id FROM part)"""
_DELETE_SINGLE_RECORDS = """
DELETE FROM same_person WHERE patient_id IN (:source, :target) AND NOT EXISTS (
    SELECT 1 FROM same_person AS other
    WHERE other.person_id = same_person.patient_id AND other.patient_id <> same_person.patient_id)"""


def merge(write: Write, request: requests.Merge) -> tuple[list[Any], bool]:
    """Moves the active periods of the source to the target, and soft-deletes the source.

    Returns the source, the target, the ended periods, then an active period of the target for each of them. And
    whether the therapist of the source's PRIMARY period is not PRIMARY on the target. Raises, in this order:
    PatientNotFound, PatientMerged, PatientDeleted, BirthDatesDiffer, PatientNotActive, TooManyAssignments,
    MergeTooLarge.
    """
    source, target = _require_operands(write, request)
    moved, own = _lock_active(write, source, target)
    _refuse(request, source, target, moved)
    gained = _gain(source, target)
    _limit_size(write, request, source, target, gained)
    ended, active = _move(write, moved, own, target.patient_id)
    link: dict[str, Value] = {"source": source.patient_id, "target": target.patient_id}
    write.run(_JOIN_PERSONS, link)
    write.run(_ADD_PERSON, link)
    source = _close(write, source, target.patient_id)
    target = _save_target(write, target, gained)
    is_demoted = any(
        before.role == enums.ROLE_PRIMARY != after.role for before, after in zip(ended, active, strict=True)
    )
    return [source, target, *ended, *active], is_demoted


def _require_operands(write: Write, request: requests.Merge) -> tuple[Patient, Patient]:
    """Locks and returns source and target. Raises PatientNotFound, PatientMerged, PatientDeleted."""
    ids = [request.source_id, request.target_id]
    records.lock(write, PATIENT, ids)
    source, target = (records.find(write, PATIENT, patient_id) for patient_id in ids)
    if source is None or target is None:
        found = (source, target)
        raise records.not_found(PATIENT, [one for one, record in zip(ids, found, strict=True) if record is None])
    for patient in (source, target):
        records.refuse_merged(write, patient, named=True)
    for patient in (source, target):
        if patient.deleted_us is not None:
            raise errors.PatientDeleted(resources=records.resources(PATIENT, [patient.patient_id]))
    return source, target


def _lock_active(write: Write, source: Patient, target: Patient) -> tuple[list[Assignment], list[Assignment]]:
    """Returns the active periods of both, once their therapists are locked. Ends those that have expired."""
    moved, own = (assignments.list_active(write, PATIENT, patient.patient_id) for patient in (source, target))
    records.lock(write, THERAPIST, {period.therapist_id for period in [*moved, *own]})
    return expiry.end_due(write, moved), expiry.end_due(write, own)


def _refuse(request: requests.Merge, source: Patient, target: Patient, moved: list[Assignment]) -> None:
    """Raises BirthDatesDiffer, PatientNotActive, TooManyAssignments."""
    if not request.force and _birth_dates_differ(request, source.birth_date, target.birth_date):
        raise errors.BirthDatesDiffer
    if moved and target.status != enums.STATUS_ACTIVE:
        raise errors.PatientNotActive
    if len(moved) > limits.MAX_ASSIGNMENTS_PER_CALL:
        raise errors.TooManyAssignments(limit=limits.MAX_ASSIGNMENTS_PER_CALL, current=len(moved))


def _birth_dates_differ(request: requests.Merge, one: str, other: str) -> bool:
    """Returns whether two dates differ. A year, or a year and a month, does not differ from a date within it."""
    if not request.may_compare:
        return one != "" and other != ""
    return not (one.startswith(other) or other.startswith(one))


def _gain(source: Patient, target: Patient) -> Patient:
    """Returns the target with the identifiers, names and contact fields that it gains."""
    own_names = [target.display_name, *json.loads(target.aliases)]
    aliases = [*own_names[1:], *(name for name in _names(source) if name not in own_names)]
    identifiers = json.loads(target.identifiers)
    own_keys = set(map(unique_key, identifiers))
    gained = [pair for pair in json.loads(source.identifiers) if unique_key(pair) not in own_keys]
    return target._replace(
        identifiers=_to_json([*identifiers, *gained]),
        aliases=_to_json(aliases),
        email=target.email or source.email,
        phone_number=target.phone_number or source.phone_number,
        birth_date=_birth_date(source, target),
    )


def _birth_date(source: Patient, target: Patient) -> str:
    """Returns the fuller of two dates, which may be partial or empty, and that of the target if they differ."""
    return source.birth_date if source.birth_date.startswith(target.birth_date) else target.birth_date


def _names(patient: Patient) -> list[str]:
    return list(dict.fromkeys([patient.display_name, *json.loads(patient.aliases)]))


def _limit_size(write: Write, request: requests.Merge, source: Patient, target: Patient, gained: Patient) -> None:
    """Raises MergeTooLarge. Args: gained, the target with what it gains."""
    if not request.may_compare:
        gained = gained._replace(
            aliases=_to_json([*json.loads(target.aliases), *_names(source)]),
            birth_date=max(source.birth_date, target.birth_date, key=len),
        )
    _limit("identifiers", len(json.loads(gained.identifiers)), limits.MAX_IDENTIFIERS)
    _limit("aliases", len(json.loads(gained.aliases)), limits.MAX_ALIASES)
    _limit("patient", record_sizes.approximate_bytes(gained), limits.MAX_RECORD_BYTES)
    _limit("merged_patients", _count_records(write, source) + _count_records(write, target), limits.MAX_MERGED_PATIENTS)


def _to_json(values: list[Any]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def _limit(field: str, size: int, limit: int) -> None:
    if size > limit:
        raise errors.MergeTooLarge(field=field, limit=limit)


def _count_records(write: Write, patient: Patient) -> int:
    [(count,)] = write.run(_COUNT_RECORDS, {"patient_id": patient.patient_id})
    return int(count) or 1


def _move(
    write: Write, moved: list[Assignment], own: list[Assignment], target_id: str
) -> tuple[list[Assignment], list[Assignment]]:
    """Ends periods, and begins those of the target. Returns the ended ones, and the target's active one for each.

    Args: own, the active periods of the target.
    """
    present = {period.therapist_id: period for period in own}
    has_primary = any(period.role == enums.ROLE_PRIMARY for period in own)
    counts = CountChanges()
    ended, active = [], []
    for period in moved:
        is_demoted = has_primary and period.role == enums.ROLE_PRIMARY
        role = enums.ROLE_TREATING if is_demoted else period.role
        order = requests.Assign(period.therapist_id, target_id, role, period.focus)
        start_us = assignments.resolve_start(write, order, [period])
        if period.expire_us is not None:  # the start may lie a minute ahead, and behind the planned end
            order = order._replace(expire_us=max(start_us, period.expire_us))
        ended.append(assignments.end(write, period, start_us, enums.END_MERGED, counts))
        active.append(present.get(period.therapist_id) or assignments.begin(write, order, start_us, counts))
    counts.save(write)
    return ended, active


def _close(write: Write, source: Patient, target_id: str) -> Patient:
    """Links the source to the target and soft-deletes it, which frees its identifiers."""
    before = records.require(write, PATIENT, source.patient_id)  # whose count is 0 now
    closed = before._replace(deleted_us=write.now_us, merged_into_patient_id=target_id)
    return records.save(write, PATIENT, before, closed, enums.CHANGE_DELETED, "delete_time", "merged_into_patient_id")


def _save_target(write: Write, target: Patient, changed: Patient) -> Patient:
    """Saves a target even if nothing differs: its change set is found by its id, and reads of it have other results."""
    fields = [name for name in PATIENT.defaults if getattr(changed, name) != getattr(target, name)]
    before = records.require(write, PATIENT, target.patient_id)  # with its present count
    after = before._replace(**{name: getattr(changed, name) for name in fields})
    return records.save(write, PATIENT, before, after, enums.CHANGE_UPDATED, *fields)


def unmerge(write: Write, source_id: str) -> tuple[list[Patient], bool]:
    """Clears the link of a merged source and undeletes it. The target loses the source's identifiers.

    Returns the source and the target, or only the unchanged source if it is not merged. And whether it was merged.
    Raises, in this order: PatientNotFound, PatientMerged (the target is), IdentifierTaken.
    """
    rows = write.run(PATIENT.select, {"id": source_id})
    target_id = Patient._make(rows[0]).merged_into_patient_id if rows else ""
    records.lock(write, PATIENT, [source_id, target_id])
    source = records.require(write, PATIENT, source_id)
    if source.merged_into_patient_id != target_id:
        raise SerializationConflict  # it was merged or unmerged before the lock
    if not target_id:
        return [source], False
    target = records.require(write, PATIENT, target_id)
    records.refuse_merged(write, target, named=True)
    target = _take_back_identifiers(write, source, target)
    return [_reopen(write, source, target_id), target], True


def _take_back_identifiers(write: Write, source: Patient, target: Patient) -> Patient:
    """Removes the source's identifiers from the target, which keeps its own ones with the same keys."""
    returned = json.loads(source.identifiers)
    kept = [pair for pair in json.loads(target.identifiers) if pair not in returned]
    saved = _save_target(write, target, target._replace(identifiers=_to_json(kept)))
    release_keys(write, PATIENT.name, saved, returned)
    return saved


def _reopen(write: Write, source: Patient, target_id: str) -> Patient:
    """Clears the link of the source, and undeletes it with its identifiers. Raises IdentifierTaken."""
    link: dict[str, Value] = {"source": source.patient_id, "target": target_id}
    write.run(_SPLIT_PERSON, link)
    write.run(_DELETE_SINGLE_RECORDS, link)
    after = source._replace(deleted_us=None, merged_into_patient_id="")
    return records.save(write, PATIENT, source, after, enums.CHANGE_UNDELETED, "delete_time", "merged_into_patient_id")


def read_all(write: Write, ids: list[str]) -> list[Any]:
    """Returns the records of the response by their ids: source and target, then assignments.

    The kind follows from the position, because a caller can give a patient the id of an assignment.
    """
    return [*(records.read(write, PATIENT, one) for one in ids[:2]), *assignments.require_all(write, ids[2:])]


def same_person(transaction: Transaction, patient_id: str) -> tuple[str, ...]:
    """Returns the ids of all records of a person, from the id of any of them."""
    rows = transaction.run(SELECT_SAME_PERSON, {"patient_id": patient_id})
    return tuple(row[0] for row in rows) or (patient_id,)
