"""Versions: what records were before their changes. Their canonical form, its hash, and the statements that keep them.

A version has the columns of the record's row without those that are derived from assignments. Its canonical form is a
JSON object of them (RFC 8785). docs/operations/change-log.md documents it, so that others can compute the hashes too.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from caseload_server.domain.records import Assignment, Patient, Therapist
from caseload_server.store.backends.protocol import Value
from caseload_server.store.hash_chain import HASH_BYTES, canonical_json

Record = Therapist | Patient | Assignment
DERIVED_COLUMNS: Final = {"active_patient_count", "active_therapist_count", "primary_therapist_id"}
"""Columns that follow from assignments, so that versions leave them out."""
IMAGE_COLUMNS: Final = {
    record.__name__.lower(): tuple(sorted({*record._fields} - DERIVED_COLUMNS))
    for record in (Therapist, Patient, Assignment)
}
"""The columns of the canonical form in its order, by table."""
_PERSON_COLUMNS: Final = {"display_name", "aliases", "email", "status", "identifiers", "annotations"}
_ROW_COLUMNS: Final = {"created_us", "updated_us", "deleted_us", "etag"}
FIRST_IMAGE_COLUMNS: Final = {
    "therapist": {"therapist_id", "specialties", "max_active_patients", *_PERSON_COLUMNS, *_ROW_COLUMNS},
    "patient": {"patient_id", "birth_date", "phone_number", "merged_into_patient_id", *_PERSON_COLUMNS, *_ROW_COLUMNS},
}
"""The columns that all versions have, by table. Versions from before a later migration lack the columns of it."""
STORED_COLUMNS: Final = {
    "therapist": ("therapist_id", "image"),
    "patient": ("patient_id", "merged_into_patient_id", "image"),
    "assignment": Assignment._fields,
}
"""The columns that the table of versions has beside to_revision and to_us, by the table of the records."""


class Version(NamedTuple):
    """A version to keep."""

    table: str
    """The table of the record."""
    values: tuple[Value, ...]
    """As STORED_COLUMNS."""
    hash: str
    """BLAKE2b-256 (RFC 7693) of the canonical form in UTF-8, in hex."""


def version_of(record: Record) -> Version:
    """Returns the version of a record, as its row is before a change."""
    table = type(record).__name__.lower()
    image = canonical_json({column: getattr(record, column) for column in IMAGE_COLUMNS[table]})
    if isinstance(record, Assignment):
        values: tuple[Value, ...] = record
    elif isinstance(record, Patient):
        values = (record.patient_id, record.merged_into_patient_id, image)
    else:
        values = (record.therapist_id, image)
    return Version(table, values, image_hash(image))


def image_hash(image: str) -> str:
    """Returns the hash of a version's canonical form, in hex. The random etag in it keeps others from guessing it."""
    return hashlib.blake2b(image.encode(), digest_size=HASH_BYTES).hexdigest()


def inserts(versions: Iterable[tuple[int, int, Version]]) -> Iterator[tuple[str, dict[str, Value]]]:
    """Yields one INSERT for each table, and its parameters. Other parameters are those of change_log.append.

    Args: versions, each after the number of its change set and the time of that, in microseconds since 1970 (UTC).
    """
    rows: dict[str, list[tuple[Value, ...]]] = {}
    for number, to_us, version in versions:
        rows.setdefault(version.table, []).append((number, to_us, *version.values))
    for table, found in rows.items():
        if len(found) == 1:
            yield _INSERTS_OF_ONE[table], dict(zip(("number", "to_us", *STORED_COLUMNS[table]), found[0], strict=True))
        else:
            yield _INSERTS[table], {"versions": canonical_json(found)}


def _insert(table: str, number: str, values: Sequence[str], source: str = "") -> str:
    """Returns an INSERT. Args: number, of the change set; values, from to_us on; source, the FROM clause of both."""
    is_kept = f"EXISTS (SELECT 1 FROM {table} WHERE {table}_id = {values[1]})"  # a later write may have purged it
    return f"""
INSERT INTO {table}_version (to_revision, to_us, {", ".join(STORED_COLUMNS[table])})
SELECT :head_revision + 1 + {number}, {", ".join(values)}
{source} WHERE (SELECT head_hash FROM store) = :hash AND {is_kept}"""


def _value(column: str, index: int) -> str:
    is_number = column.endswith("_us") or column in {"number", "role", "end_reason"}
    return f"CAST(value ->> {index} AS BIGINT)" if is_number else f"value ->> {index}"


def _insert_of_many(table: str) -> str:
    number, *values = (
        _value(column, index) for index, column in enumerate(("number", "to_us", *STORED_COLUMNS[table]))
    )
    return _insert(table, number, values, "FROM json_each(:versions)")


_INSERTS: Final = {table: _insert_of_many(table) for table in STORED_COLUMNS}
_INSERTS_OF_ONE: Final = {
    table: _insert(table, ":number", [f":{column}" for column in ("to_us", *columns)])
    for table, columns in STORED_COLUMNS.items()
}
"""Most writes keep one version. Parsing it as JSON would cost more than the rest of the statement."""
