"""Therapists and patients: two kinds of record with the same verbs and the same SQL, but for their columns."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Final, Generic

from caseload_server.domain import enums, errors, limits
from caseload_server.domain.records import P, Patient, Therapist
from caseload_server.domain.requests import Fields
from caseload_server.store import search
from caseload_server.store.write import Write


@dataclass(frozen=True)
class RecordKind(Generic[P]):
    """What tells therapists from patients: table, columns, errors."""

    name: str
    record: type[P]
    defaults: Fields
    """Every column a caller sets, with its value where none is given."""
    count: str
    """The column with the number of active assignments."""
    idle_status: int
    """The status that no one with an active assignment may have."""
    not_found: type[errors.DomainError]
    deleted: type[errors.DomainError]

    @property
    def id(self) -> str:
        """The column of the id."""
        return f"{self.name}_id"

    @property
    def columns(self) -> str:
        """All columns, in the order of the record, of a table under the alias `one`."""
        return ", ".join(f"one.{column}" for column in self.record._fields)

    @cached_property
    def select(self) -> str:
        """One record by id."""
        return f"SELECT {self.columns} FROM {self.name} AS one WHERE one.{self.id} = :id"

    @cached_property
    def select_batch(self) -> str:
        """Records by a JSON list of ids."""
        return f"{self.select.partition(' WHERE ')[0]} WHERE one.{self.id} IN (SELECT atom FROM json_each(:ids))"

    @cached_property
    def insert(self) -> str:
        """A new record, unless the id is taken or was purged; a row where it was inserted."""
        columns = self.record._fields
        values = ", ".join(f":{column}" for column in columns)
        return (
            f"INSERT INTO {self.name} ({', '.join(columns)}) VALUES ({values})"
            f" ON CONFLICT ({self.id}) DO NOTHING RETURNING 1"
        )

    @cached_property
    def update(self) -> str:
        """Everything that changes by a call on the record itself; what derives from assignments stays."""
        columns = [*self.defaults, "updated_us", "deleted_us", "etag"]
        return f"UPDATE {self.name} SET {', '.join(f'{c} = :{c}' for c in columns)} WHERE {self.id} = :{self.id}"

    @cached_property
    def add_identifier(self) -> str:
        """An identifier, unless another live record carries it; a row where it was inserted."""
        return (
            f"INSERT INTO {self.name}_identifier ({self.id}, system, value, live) VALUES (:id, :system, :value, :live)"
            " ON CONFLICT (system, value, live) DO NOTHING RETURNING 1"
        )

    @cached_property
    def add_words(self) -> str:
        """The words that a name is found by, a JSON list."""
        return f"INSERT INTO {self.name}_name_word ({self.id}, word) SELECT :id, atom FROM json_each(:words)"


_JSON: Final = {"identifiers", "specialties", "annotations"}
_FLAT_BYTES: Final = 128
"""Of a record's numbers and times."""
_ADD_SPECIALTIES = "INSERT INTO therapist_specialty (therapist_id, specialty) SELECT :id, atom FROM json_each(:codes)"

THERAPIST = RecordKind(
    name="therapist",
    record=Therapist,
    defaults={
        "display_name": "",
        "email": "",
        "status": enums.STATUS_ACTIVE,
        "identifiers": "[]",
        "specialties": "[]",
        "max_active_patients": None,
        "annotations": "{}",
    },
    count="active_patient_count",
    idle_status=enums.THERAPIST_INACTIVE,
    not_found=errors.TherapistNotFound,
    deleted=errors.TherapistDeleted,
)
PATIENT = RecordKind(
    name="patient",
    record=Patient,
    defaults={
        "display_name": "",
        "birth_date": "",
        "email": "",
        "phone_number": "",
        "status": enums.STATUS_ACTIVE,
        "identifiers": "[]",
        "annotations": "{}",
    },
    count="active_therapist_count",
    idle_status=enums.PATIENT_DISCHARGED,
    not_found=errors.PatientNotFound,
    deleted=errors.PatientDeleted,
)


def not_found(kind: RecordKind[P], ids: Iterable[str]) -> errors.DomainError:
    """The kind's NOT_FOUND, which names the ids."""
    missing = list(ids)
    return kind.not_found(resources=resources(kind, missing), missing=len(missing))


def resources(kind: RecordKind[Any], ids: list[str]) -> list[errors.Resource]:
    """The records by their ids, the first 15 at most: an error's details have a bound."""
    return [errors.Resource(f"caseload.v1.{kind.record.__name__}", one) for one in ids[:15]]


def find(write: Write, kind: RecordKind[P], record_id: str) -> P | None:
    """The record, locked until the transaction ends."""
    rows = write.run(kind.select + write.lock_clause, {"id": record_id})
    return kind.record._make(rows[0]) if rows else None


def require(write: Write, kind: RecordKind[P], record_id: str) -> P:
    """As `find`. Raises the kind's NOT_FOUND."""
    record = find(write, kind, record_id)
    if record is None:
        raise not_found(kind, [record_id])
    return record


def lock(write: Write, kind: RecordKind[Any], ids: Iterable[str]) -> None:
    """Locks records in the order of their ids, patients before therapists: then no two writers wait for each other."""
    if write.lock_clause:
        wanted = f"one.{kind.id} IN (SELECT atom FROM json_each(:ids))"
        sql = f"SELECT 1 FROM {kind.name} AS one WHERE {wanted} ORDER BY one.{kind.id}{write.lock_clause}"
        write.run(sql, {"ids": json.dumps(list(ids))})


def create(write: Write, kind: RecordKind[P], record_id: str, fields: Fields) -> P:
    """Adds a record. Raises IdTaken, IdentifierTaken, InvalidField (larger than 32 KiB)."""
    times = {"created_us": write.now_us, "updated_us": write.now_us, "deleted_us": None}
    derived = {kind.count: 0, "primary_therapist_id": ""}
    values: dict[str, Any] = {**kind.defaults, **fields, **times, **derived, "etag": write.new_etag()}
    values[kind.id] = record_id or write.new_id()
    record = kind.record(**{column: values[column] for column in kind.record._fields})
    _check_size(kind, record)
    if not write.run(kind.insert, record._asdict()):
        raise errors.IdTaken
    _index(write, kind, record)
    write.record_change(enums.CHANGE_CREATED, record)
    return record


def update(write: Write, kind: RecordKind[P], record: P, etag: str, fields: Fields) -> P:
    """Sets fields of a live record; writes nothing where none differs.

    Raises the kind's DELETED, EtagMismatch, HasActiveAssignments, IdentifierTaken, InvalidField (larger than 32 KiB).
    """
    if record.deleted_us is not None:
        raise kind.deleted
    if etag and etag != record.etag:
        raise errors.EtagMismatch
    differing: Fields = {name: value for name, value in fields.items() if getattr(record, name) != value}
    if not differing:
        return record
    changed = record._replace(**differing)  # type: ignore[arg-type]
    _check_size(kind, changed)
    if changed.status == kind.idle_status:
        _refuse_active(kind, record)
    return _store(write, kind, record, changed, enums.CHANGE_UPDATED, *differing)


def delete(write: Write, kind: RecordKind[P], record: P) -> P:
    """Soft-deletes a live record whose assignments have ended."""
    return _store(write, kind, record, record._replace(deleted_us=write.now_us), enums.CHANGE_DELETED, "delete_time")


def undelete(write: Write, kind: RecordKind[P], record: P) -> P:
    """Reverts a soft delete; a live record is left as it is. Raises IdentifierTaken."""
    if record.deleted_us is None:
        return record
    return _store(write, kind, record, record._replace(deleted_us=None), enums.CHANGE_UNDELETED, "delete_time")


def active_count(kind: RecordKind[P], record: P) -> int:
    """How many active assignments the record has."""
    count: int = getattr(record, kind.count)
    return count


def _refuse_active(kind: RecordKind[P], record: P) -> None:
    if count := active_count(kind, record):
        raise errors.HasActiveAssignments(count=count)


def _store(write: Write, kind: RecordKind[P], before: P, record: P, change: int, *fields: str) -> P:
    record = record._replace(updated_us=write.now_us, etag=write.new_etag())
    write.run(kind.update, {name: value for name, value in record._asdict().items() if f":{name}" in kind.update})
    _index(write, kind, record, before)
    write.record_change(change, record, *fields)
    return record


def _check_size(kind: RecordKind[P], record: P) -> None:
    """Raises InvalidField above 32 KiB, as a message has it: its texts, and about four bytes around each."""
    if _FLAT_BYTES + 8 * sum(len(value) + 1 for value in record if isinstance(value, str)) <= limits.MAX_RECORD_BYTES:
        return  # whatever is in them: four bytes a character, and those around a text
    whole = [
        json.loads(value) if column in _JSON else value
        for column, value in record._asdict().items()
        if isinstance(value, str)
    ]
    if _FLAT_BYTES + _bytes(whole) > limits.MAX_RECORD_BYTES:
        raise errors.InvalidField(errors.Violation(kind.name, "must not be larger than 32 KiB as a whole"))


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode()) + 4
    return sum(map(_bytes, chain.from_iterable(value.items()) if isinstance(value, dict) else value))


def _index(write: Write, kind: RecordKind[Any], record: Any, before: Any = None) -> None:
    """Brings up to date what the record is found by; before is None where it is new. Raises IdentifierTaken."""

    def differs(*columns: str) -> bool:
        return before is None or any(getattr(record, column) != getattr(before, column) for column in columns)

    def clear(table: str) -> None:
        if before is not None:
            write.run(f"DELETE FROM {kind.name}_{table} WHERE {kind.id} = :id", {"id": record[0]})

    if differs("display_name"):
        clear("name_word")
        write.run(kind.add_words, {"id": record[0], "words": json.dumps(search.name_words(record.display_name))})
    if "specialties" in kind.defaults and differs("specialties"):
        clear("specialty")
        write.run(_ADD_SPECIALTIES, {"id": record[0], "codes": record.specialties})
    if differs("identifiers", "deleted_us"):
        clear("identifier")
        live = 1 if record.deleted_us is None else None
        for system, value in sorted(json.loads(record.identifiers)):  # all writers in one order
            pair = {"id": record[0], "system": system, "value": value, "live": live}
            if not write.run(kind.add_identifier, pair):
                raise errors.IdentifierTaken
