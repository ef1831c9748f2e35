"""Therapists and patients: two kinds of record with the same verbs and the same SQL, but for their columns."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Final, Generic

from service import errors, records
from service.records import Fields, P, PeopleQuery
from service.store import changes, search
from service.store.changes import Write
from service.store.database import Value


@dataclass(frozen=True)
class Kind(Generic[P]):
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
        """A new record, unless the id is taken; a row where it was inserted."""
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
_PURGED = "SELECT 1 FROM purged WHERE kind = :kind AND record_id = :id"
_ADD_SPECIALTIES = "INSERT INTO therapist_specialty (therapist_id, specialty) SELECT :id, atom FROM json_each(:codes)"

THERAPIST = Kind(
    name="therapist",
    record=records.Therapist,
    defaults={
        "display_name": "",
        "email": "",
        "status": records.STATUS_ACTIVE,
        "identifiers": "[]",
        "specialties": "[]",
        "max_active_patients": None,
        "annotations": "{}",
    },
    count="active_patient_count",
    idle_status=records.THERAPIST_INACTIVE,
    not_found=errors.TherapistNotFound,
    deleted=errors.TherapistDeleted,
)
PATIENT = Kind(
    name="patient",
    record=records.Patient,
    defaults={
        "display_name": "",
        "birth_date": "",
        "email": "",
        "phone_number": "",
        "status": records.STATUS_ACTIVE,
        "identifiers": "[]",
        "annotations": "{}",
    },
    count="active_therapist_count",
    idle_status=records.PATIENT_DISCHARGED,
    not_found=errors.PatientNotFound,
    deleted=errors.PatientDeleted,
)


def not_found(kind: Kind[P], ids: Iterable[str]) -> errors.DomainError:
    """The kind's NOT_FOUND, which names the ids."""
    missing = list(ids)
    return kind.not_found(resources=resources(kind, missing), missing=len(missing))


def resources(kind: Kind[Any], ids: list[str]) -> list[errors.Resource]:
    """The records by their ids, the first 15 at most: an error's details have a bound."""
    return [errors.Resource(f"caseload.v1.{kind.record.__name__}", one) for one in ids[:15]]


def find(write: Write, kind: Kind[P], record_id: str) -> P | None:
    """The record, locked until the transaction ends."""
    rows = write.run(kind.select + write.row_lock, {"id": record_id})
    return kind.record._make(rows[0]) if rows else None


def require(write: Write, kind: Kind[P], record_id: str) -> P:
    """As `find`. Raises the kind's NOT_FOUND."""
    record = find(write, kind, record_id)
    if record is None:
        raise not_found(kind, [record_id])
    return record


def lock(write: Write, kind: Kind[Any], ids: Iterable[str]) -> None:
    """Locks records in the order of their ids, patients before therapists: then no two writers wait for each other."""
    if write.row_lock:
        wanted = f"one.{kind.id} IN (SELECT atom FROM json_each(:ids))"
        sql = f"SELECT 1 FROM {kind.name} AS one WHERE {wanted} ORDER BY one.{kind.id}{write.row_lock}"
        write.run(sql, {"ids": json.dumps(list(ids))})


def create(write: Write, kind: Kind[P], record_id: str, fields: Fields) -> P:
    """Adds a record. Raises IdTaken, IdentifierTaken, InvalidField (larger than 32 KiB)."""
    times = {"created_us": write.now_us, "updated_us": write.now_us, "deleted_us": None}
    derived = {kind.count: 0, "primary_therapist_id": ""}
    values: dict[str, Any] = {**kind.defaults, **fields, **times, **derived, "etag": write.new_etag()}
    values[kind.id] = record_id or write.new_id()
    record = kind.record(**{column: values[column] for column in kind.record._fields})
    _check_size(kind, record)
    if not write.run(kind.insert, record._asdict()):
        raise errors.IdTaken
    # Looked at behind the row that was added, which waits for a purge of that id; an id that was made is none of those.
    if record_id and write.run(_PURGED, {"kind": kind.name, "id": record_id}):
        raise errors.IdTaken
    _index(write, kind, record)
    write.note(changes.CREATED, record)
    return record


def update(write: Write, kind: Kind[P], record: P, etag: str, fields: Fields) -> P:
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
    return _store(write, kind, record, changed, changes.UPDATED, *differing)


def delete(write: Write, kind: Kind[P], record: P) -> P:
    """Soft-deletes a live record whose assignments have ended."""
    return _store(write, kind, record, record._replace(deleted_us=write.now_us), changes.DELETED, "delete_time")


def undelete(write: Write, kind: Kind[P], record: P) -> P:
    """Reverts a soft delete; a live record is left as it is. Raises IdentifierTaken."""
    if record.deleted_us is None:
        return record
    return _store(write, kind, record, record._replace(deleted_us=None), changes.UNDELETED, "delete_time")


def active_count(kind: Kind[P], record: P) -> int:
    """How many active assignments the record has."""
    count: int = getattr(record, kind.count)
    return count


def _refuse_active(kind: Kind[P], record: P) -> None:
    if count := active_count(kind, record):
        raise errors.HasActiveAssignments(count=count)


def _store(write: Write, kind: Kind[P], before: P, record: P, change: int, *fields: str) -> P:
    record = record._replace(updated_us=write.now_us, etag=write.new_etag())
    write.run(kind.update, {name: value for name, value in record._asdict().items() if f":{name}" in kind.update})
    _index(write, kind, record, before)
    write.note(change, record, *fields)
    return record


def _check_size(kind: Kind[P], record: P) -> None:
    """Raises InvalidField above 32 KiB, as a message has it: its texts, and about four bytes around each."""
    if _FLAT_BYTES + 8 * sum(len(value) + 1 for value in record if isinstance(value, str)) <= records.RECORD_BYTES:
        return  # whatever is in them: four bytes a character, and those around a text
    whole = [
        json.loads(value) if column in _JSON else value
        for column, value in record._asdict().items()
        if isinstance(value, str)
    ]
    if _FLAT_BYTES + _bytes(whole) > records.RECORD_BYTES:
        raise errors.InvalidField(errors.Violation(kind.name, "must not be larger than 32 KiB as a whole"))


def _bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode()) + 4
    return sum(map(_bytes, chain.from_iterable(value.items()) if isinstance(value, dict) else value))


def _index(write: Write, kind: Kind[Any], record: Any, before: Any = None) -> None:
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


def listing(kind: Kind[Any], query: PeopleQuery) -> tuple[str, dict[str, Value]]:
    """The SELECT of one page of a list, and its parameters but for :after and :limit.

    An index is walked in the order of the ids, one for each status or specialty. Only names and identifiers are looked
    up before, and sorted.
    """
    is_looked_up = query.identifier or query.name_prefix
    if query.specialties and not is_looked_up:
        selects = [_select(kind, "specialty", walk) for walk in _specialty_walks(len(query.specialties))]
        conditions, parameters = _conditions(kind, query._replace(specialties=()))
        parameters |= _named("specialty", query.specialties)
    elif query.statuses and not is_looked_up:
        selects = [_select(kind, "", f"one.status = {number}") for number in sorted(set(query.statuses))]
        conditions, parameters = _conditions(kind, query._replace(statuses=()))
    else:
        selects = [_select(kind, "", "")]
        conditions, parameters = _conditions(kind, query)
    return merged([" AND ".join([select, *conditions]) for select in selects]), parameters


def _select(kind: Kind[Any], found_in: str, walk: str) -> str:
    """Those who are walked through, directly or by a table that they are found by."""
    source, first = f"{kind.name} AS one", f"one.{kind.id}"
    if found_in:
        first = f"found.{kind.id}"
        source = f"{kind.name}_{found_in} AS found JOIN {source} ON one.{kind.id} = {first}"
    where = " AND ".join([*([walk] if walk else []), f"{first} > :after"])
    return f"SELECT {kind.columns.replace(f'one.{kind.id}', first, 1)} FROM {source} WHERE {where}"


def _specialty_walks(count: int) -> Iterator[str]:
    """The condition of each specialty; who has an earlier one too is met there."""
    for n in range(count):
        earlier = ", ".join(f":specialty{m}" for m in range(n))
        walk = f"found.specialty = :specialty{n}"
        if earlier:
            walk += (
                " AND NOT EXISTS (SELECT 1 FROM therapist_specialty AS other"
                f" WHERE other.therapist_id = found.therapist_id AND other.specialty IN ({earlier}))"
            )
        yield walk


def merged(selects: list[str]) -> str:
    """One page of SELECTs that each walk an index in the order of their first column."""
    if len(selects) == 1:
        return f"{selects[0]} ORDER BY 1 LIMIT :limit"
    return f"SELECT * FROM ({' UNION ALL '.join(selects)}) AS walked ORDER BY 1 LIMIT :limit"


def _named(name: str, values: Sequence[str]) -> dict[str, Value]:
    return {f"{name}{n}": value for n, value in enumerate(values)}


def _conditions(kind: Kind[Any], query: PeopleQuery) -> tuple[list[str], dict[str, Value]]:
    conditions: list[str] = []
    parameters: dict[str, Value] = {}
    if not query.show_deleted:
        conditions.append("one.deleted_us IS NULL")
    if query.statuses:
        conditions.append(f"one.status IN ({numbers(query.statuses)})")
    if query.unassigned:
        conditions.append(f"one.{kind.count} = 0")
    if query.accepting_patients:
        conditions.append(
            f"one.status = {records.STATUS_ACTIVE} AND one.deleted_us IS NULL"
            f" AND (one.max_active_patients IS NULL OR one.{kind.count} < one.max_active_patients)"
        )
    if query.identifier:
        conditions.append(_found_in(kind, "identifier", "system = :system AND value = :value"))
        parameters["system"], parameters["value"] = query.identifier
    if query.specialties:
        named = _named("specialty", query.specialties)
        conditions.append(_found_in(kind, "specialty", f"specialty IN ({', '.join(f':{name}' for name in named)})"))
        parameters |= named
    if query.name_prefix:
        words = search.name_words(query.name_prefix)
        if not words:  # hyphens and accents alone would match everyone
            raise errors.InvalidField(errors.Violation("filter.name_prefix", "must hold a word"))
        for n, word in enumerate(words):
            conditions.append(_found_in(kind, "name_word", f"word >= :word{n} AND word < :word{n}_end"))
            parameters |= {f"word{n}": word, f"word{n}_end": word + search.LAST_CHARACTER}
    return conditions, parameters


def _found_in(kind: Kind[Any], table: str, condition: str) -> str:
    return f"one.{kind.id} IN (SELECT {kind.id} FROM {kind.name}_{table} WHERE {condition})"


def numbers(values: Iterable[int]) -> str:
    """Enumeration numbers as SQL text: known ones only, so the statements stay few and prepared."""
    return ", ".join(str(int(value)) for value in sorted(set(values)))
