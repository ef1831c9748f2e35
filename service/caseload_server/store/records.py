"""Therapists and patients: two kinds of record with the same verbs. Their SQL differs only in tables and columns."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic

from caseload_server.domain import enums, errors, limits
from caseload_server.domain.records import P, Patient, Therapist
from caseload_server.domain.requests import Fields, Update
from caseload_server.store import identifiers, record_sizes, search
from caseload_server.store.backends.protocol import Row, Value
from caseload_server.store.write_transaction import Write


@dataclass(frozen=True)
class RecordKind(Generic[P]):
    """How therapists and patients differ: table, columns, errors."""

    name: str
    """The name of the table."""
    record: type[P]
    defaults: Fields
    """The columns that a caller can set, with their defaults."""
    count_column: str
    """The column with the number of active assignments."""
    idle_status: int
    """The status that a record with active assignments must not have."""
    not_found: type[errors.DomainError]
    deleted: type[errors.DomainError]

    @property
    def id_column(self) -> str:
        """Returns the name of the id column."""
        return f"{self.name}_id"

    @cached_property
    def columns(self) -> str:
        """Returns all columns in the order of the record, for a table with the alias `record`."""
        return ", ".join(f"record.{column}" for column in self.record._fields)

    @cached_property
    def select(self) -> str:
        """Returns the SELECT of one record, by :id."""
        return f"SELECT {self.columns} FROM {self.name} AS record WHERE record.{self.id_column} = :id"

    @cached_property
    def select_batch(self) -> str:
        """Returns the SELECT of several records, by the JSON list :ids."""
        select, _, _ = self.select.partition(" WHERE ")
        return f"{select} WHERE record.{self.id_column} IN (SELECT atom FROM json_each(:ids))"

    @cached_property
    def insert(self) -> str:
        """Returns the INSERT of a record. It returns no row if the id is in use or was purged."""
        columns = self.record._fields + search.KEY_COLUMNS
        values = ", ".join(f":{column}" for column in columns)
        return (
            f"INSERT INTO {self.name} ({', '.join(columns)}) VALUES ({values})"
            f" ON CONFLICT ({self.id_column}) DO NOTHING RETURNING 1"
        )

    def update(self, columns: Iterable[str]) -> str:
        """Returns the UPDATE of columns of a record. SQLite rewrites the indexes of all columns in it, changed or not.

        A record whose words and keys are not current stays so, until all of them are made.
        """
        values = ", ".join(f"{column} = :{column}" for column in columns)
        is_current = f"keyed_etag = '{search.RULES_VERSION}:' || etag"
        keyed = f"keyed_etag = CASE WHEN {is_current} THEN :keyed_etag ELSE keyed_etag END"
        return f"UPDATE {self.name} SET {values}, {keyed} WHERE {self.id_column} = :id"

    @cached_property
    def insert_name_words(self) -> str:
        """Returns the INSERT of the search words of a name, from the JSON list :words."""
        return f"INSERT INTO {self.name}_name_word ({self.id_column}, word) SELECT :id, atom FROM json_each(:words)"


_SELECT_PERSON = "SELECT person_id FROM same_person WHERE patient_id = :patient_id"
_INSERT_SPECIALTIES = (
    "INSERT INTO therapist_specialty (therapist_id, specialty) SELECT :id, atom FROM json_each(:codes)"
)

THERAPIST = RecordKind(
    name="therapist",
    record=Therapist,
    defaults={
        "display_name": "",
        "aliases": "[]",
        "email": "",
        "status": enums.STATUS_ACTIVE,
        "identifiers": "[]",
        "specialties": "[]",
        "max_active_patients": None,
        "annotations": "{}",
    },
    count_column="active_patient_count",
    idle_status=enums.THERAPIST_INACTIVE,
    not_found=errors.TherapistNotFound,
    deleted=errors.TherapistDeleted,
)
PATIENT = RecordKind(
    name="patient",
    record=Patient,
    defaults={
        "display_name": "",
        "aliases": "[]",
        "birth_date": "",
        "email": "",
        "phone_number": "",
        "status": enums.STATUS_ACTIVE,
        "identifiers": "[]",
        "annotations": "{}",
    },
    count_column="active_therapist_count",
    idle_status=enums.PATIENT_DISCHARGED,
    not_found=errors.PatientNotFound,
    deleted=errors.PatientDeleted,
)


def not_found(kind: RecordKind[P], ids: Iterable[str]) -> errors.DomainError:
    """Returns the kind's NOT_FOUND error, which names the ids."""
    missing = list(ids)
    return kind.not_found(resources=resources(kind, missing), missing=len(missing))


def resources(kind: RecordKind[Any], ids: list[str]) -> list[errors.Resource]:
    """Returns the first 15 records as error details, whose size is limited."""
    return [errors.Resource(f"caseload.v1.{kind.record.__name__}", record_id) for record_id in ids[:15]]


def find(write: Write, kind: RecordKind[P], record_id: str) -> P | None:
    """Returns the record, if any, and locks it until the transaction ends."""
    rows = write.run(kind.select + write.lock_clause, {"id": record_id})
    write.read_clock()
    return kind.record._make(rows[0]) if rows else None


def require(write: Write, kind: RecordKind[P], record_id: str) -> P:
    """Returns the record, and locks it until the transaction ends. Raises the kind's NOT_FOUND."""
    record = find(write, kind, record_id)
    if record is None:
        raise not_found(kind, [record_id])
    return record


def read(write: Write, kind: RecordKind[P], record_id: str) -> P:
    """Returns the record for the answer to a repeated call. It takes no lock. Raises the kind's NOT_FOUND."""
    for row in write.run(kind.select, {"id": record_id}):
        return kind.record._make(row)
    raise not_found(kind, [record_id])


def read_all(write: Write, kind: RecordKind[P], ids: list[str]) -> list[P]:
    """Returns records for the answer to a repeated call. It takes no lock. Raises the kind's NOT_FOUND."""
    return in_order(kind, ids, write.run(kind.select_batch, {"ids": json.dumps(ids)}))


def in_order(kind: RecordKind[P], ids: list[str], rows: list[Row]) -> list[P]:
    """Returns the records of rows in the order of their ids. Raises the kind's NOT_FOUND, which names the missing."""
    found = {row[0]: kind.record._make(row) for row in rows}
    if missing := [record_id for record_id in dict.fromkeys(ids) if record_id not in found]:
        raise not_found(kind, missing)
    return [found[record_id] for record_id in ids]


def lock(write: Write, kind: RecordKind[Any], ids: Iterable[str]) -> None:
    """Locks records in id order. Callers lock patients before therapists, so that no two writers deadlock."""
    if write.lock_clause:
        condition = f"record.{kind.id_column} IN (SELECT atom FROM json_each(:ids))"
        sql = (
            f"SELECT 1 FROM {kind.name} AS record WHERE {condition} ORDER BY record.{kind.id_column}{write.lock_clause}"
        )
        write.run(sql, {"ids": json.dumps(list(ids))})
        write.read_clock()


def create(write: Write, kind: RecordKind[P], record_id: str, fields: Fields) -> P:
    """Creates a record. An empty id generates one. Raises IdTaken, IdentifierTaken, InvalidField (over 32 KiB)."""
    record = build(write, kind, record_id, fields)
    if not insert(write, kind, record):
        raise errors.IdTaken
    _update_search_tables(write, kind, record)
    write.record_change(enums.CHANGE_CREATED, record)
    return record


def build(write: Write, kind: RecordKind[P], record_id: str, fields: Fields) -> P:
    """Returns a new record, which is not inserted yet. Args as create. Raises InvalidField (over 32 KiB)."""
    times = {"created_us": write.now_us, "updated_us": write.now_us, "deleted_us": None}
    derived = {kind.count_column: 0, "primary_therapist_id": "", "merged_into_patient_id": ""}
    values: dict[str, Any] = {**kind.defaults, **fields, **times, **derived, "etag": write.new_etag()}
    values[kind.id_column] = record_id or write.new_id()
    record = kind.record(**{column: values[column] for column in kind.record._fields})
    _check_size(kind, record)
    return record


def insert(write: Write, kind: RecordKind[Any], record: Any) -> bool:
    """Inserts a record without its rows in search tables. Returns False if the id is in use or was purged."""
    return bool(write.run(kind.insert, record._asdict() | search.keys(record)))


def refuse_merged(write: Write, record: Therapist | Patient, *, named: bool = False) -> None:
    """Raises PatientMerged for a patient that was merged into another record.

    Args: named, whether the error names the patient, because the request does not, or names several.
    """
    if isinstance(record, Patient) and record.merged_into_patient_id:
        raise merged(write, record.patient_id, named=named)


def merged(write: Write, patient_id: str, *, named: bool = True) -> errors.PatientMerged:
    """Returns PATIENT_MERGED for a merged patient, with the record to use instead: it is not merged itself."""
    [(person_id,)] = write.run(_SELECT_PERSON, {"patient_id": patient_id})
    return errors.PatientMerged(patient_id=person_id, resources=resources(PATIENT, [patient_id] if named else []))


def differing_fields(write: Write, kind: RecordKind[P], record: P, request: Update) -> Fields:
    """Returns the fields of an update whose values differ from those of a live record.

    Raises PatientMerged, the kind's DELETED, EtagMismatch, InvalidField (over 32 KiB).
    """
    refuse_merged(write, record)
    if record.deleted_us is not None:
        raise kind.deleted
    if request.etag and request.etag != record.etag:
        raise errors.EtagMismatch
    differing: Fields = {name: value for name, value in request.fields.items() if getattr(record, name) != value}
    if differing:
        _check_size(kind, record._replace(**differing))  # type: ignore[arg-type]
    return differing


def update(write: Write, kind: RecordKind[P], record: P, differing: Fields) -> P:
    """Updates fields of a live record, which differing_fields returned. Raises IdentifierTaken."""
    changed = record._replace(**differing)  # type: ignore[arg-type]
    return save(write, kind, record, changed, enums.CHANGE_UPDATED, *differing)


def delete(write: Write, kind: RecordKind[P], record: P) -> P:
    """Soft-deletes a live record without active assignments."""
    return save(write, kind, record, record._replace(deleted_us=write.now_us), enums.CHANGE_DELETED, "delete_time")


def undelete(write: Write, kind: RecordKind[P], record: P, *, release_identifiers: bool) -> P:
    """Reverts a soft delete. Returns a live record unchanged. Raises PatientMerged, IdentifierTaken.

    Args: release_identifiers, whether to drop identifiers that other live records have by now, instead of the error.
    """
    refuse_merged(write, record)
    if record.deleted_us is None:
        return record
    restored = record._replace(deleted_us=None)
    if release_identifiers:
        restored = _without_taken_identifiers(write, kind, restored)
    released = ["identifiers"] if restored.identifiers != record.identifiers else []
    return save(write, kind, record, restored, enums.CHANGE_UNDELETED, "delete_time", *released)


def _without_taken_identifiers(write: Write, kind: RecordKind[P], record: P) -> P:
    """Returns the record without the identifiers that other live records have. Reserves the others.

    It inserts them instead of looking them up: another write that takes one now waits for this transaction.
    """
    _clear(write, kind, record, "identifier")
    taken = identifiers.insert(write, kind.name, record)
    kept = [pair for pair in json.loads(record.identifiers) if pair not in taken]
    return record._replace(identifiers=json.dumps(kept, ensure_ascii=False, separators=(",", ":")))


def active_count(kind: RecordKind[P], record: P) -> int:
    """Returns the number of the record's active assignments."""
    count: int = getattr(record, kind.count_column)
    return count


def save(write: Write, kind: RecordKind[P], before: P, record: P, change: int, *fields: str) -> P:
    """Saves a record with a new etag, and records the change. Args: change, a CHANGE_ enum; fields, changed fields.

    Args: before, the row as it is. Raises IdentifierTaken.
    """
    record = record._replace(updated_us=write.now_us, etag=write.new_etag())
    values = zip(record._fields, record, before, strict=True)
    columns: dict[str, Value] = {name: value for name, value, old in values if value != old}
    columns |= search.keys_of(columns)
    write.run(kind.update(columns), {**columns, "id": record[0], "keyed_etag": search.keyed_etag(record.etag)})
    _update_search_tables(write, kind, record, before)
    write.record_change(change, record, *fields, before=before)
    return record


def _check_size(kind: RecordKind[P], record: P) -> None:
    """Raises InvalidField if the record is larger than 32 KiB as a message, approximately."""
    if record_sizes.approximate_bytes(record) > limits.MAX_RECORD_BYTES:
        raise errors.InvalidField(errors.Violation(kind.name, "must not be larger than 32 KiB as a whole"))


def _update_search_tables(write: Write, kind: RecordKind[Any], record: Any, before: Any = None) -> None:
    """Updates the search tables. Args: before, None for a new record. Raises IdentifierTaken."""
    update_words(write, kind, record, before)
    if _differs(record, before, "identifiers", "deleted_us"):
        if before is not None:
            _clear(write, kind, record, "identifier")
        for system, value in identifiers.insert(write, kind.name, record, before):
            raise identifier_taken(write, kind, system, value)


def _differs(record: Any, before: Any, *columns: str) -> bool:
    return before is None or any(getattr(record, column) != getattr(before, column) for column in columns)


def update_words(write: Write, kind: RecordKind[Any], record: Any, before: Any = None) -> None:
    """Updates the search tables of names and specialties. Args: before, None for a new record."""

    def clear(table: str) -> None:
        if before is not None:
            _clear(write, kind, record, table)

    if _differs(record, before, "display_name", "aliases"):
        clear("name_word")
        words = json.dumps(search.record_words(record.display_name, json.loads(record.aliases)))
        write.run(kind.insert_name_words, {"id": record[0], "words": words})
    if "specialties" in kind.defaults and _differs(record, before, "specialties"):
        clear("specialty")
        write.run(_INSERT_SPECIALTIES, {"id": record[0], "codes": record.specialties})


def _clear(write: Write, kind: RecordKind[Any], record: Any, table: str) -> None:
    write.run(f"DELETE FROM {kind.name}_{table} WHERE {kind.id_column} = :id", {"id": record[0]})


def identifier_taken(write: Write, kind: RecordKind[Any], system: str, value: str) -> errors.IdentifierTaken:
    """Returns the error that names the live record with an identifier, unless that has just given it up."""
    return errors.IdentifierTaken(resources=resources(kind, identifiers.holders(write, kind.name, system, value)))
