"""The rules of single values. A request can store no other value, so imports refuse it and `verify` reports it.

Names and other free text have none here: an earlier version may have accepted what a request of today may not hold.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from typing import Any, Final

from caseload_server.domain import enums
from caseload_server.domain.id_formats import ID_PATTERN, ON_BEHALF_OF_PATTERN
from caseload_server.domain.value_formats import CODE_PATTERN, EMAIL_PATTERN, PHONE_PATTERN
from caseload_server.store.hash_chain import canonical_json
from caseload_server.store.portability import content
from caseload_server.store.portability.content import JSON_COLUMNS, TABLES, MalformedColumn, Table
from caseload_server.store.version_images import FIRST_IMAGE_COLUMNS, IMAGE_COLUMNS

TIME_BOUNDS: Final = (-62_135_596_800_000_000, 253_402_300_799_999_999)
"""The range of a protobuf Timestamp, the years 1 to 9999, in microseconds since 1970."""
_INT64: Final = (0, 2**63 - 1)
_INT32: Final = (0, 2**31 - 1)
BOUNDS: Final = {
    "therapist.status": (enums.STATUS_ACTIVE, enums.THERAPIST_INACTIVE),
    "therapist.max_active_patients": _INT32,
    "therapist.active_patient_count": _INT32,
    "patient.status": (enums.STATUS_ACTIVE, enums.PATIENT_DISCHARGED),
    "patient.active_therapist_count": _INT32,
    "assignment.role": (enums.ROLE_PRIMARY, enums.ROLE_COVERING),
    "assignment.end_reason": (0, enums.END_EXPIRED),
    "assignment_version.role": (enums.ROLE_PRIMARY, enums.ROLE_COVERING),
    "assignment_version.end_reason": (0, enums.END_EXPIRED),
    "change.kind": (enums.CHANGE_CREATED, enums.CHANGE_VERSIONS_PURGED),
}
"""The range of numbers, by table and column."""


def _optional(pattern: str) -> str:
    return f"(?:{pattern})?"


def _at_most(length: int, pattern: str) -> str:
    return rf"(?!.{{{length + 1}}})(?:{pattern})"


_ID: Final = ID_PATTERN.pattern
_ID_COLUMNS: Final = ("therapist_id", "patient_id", "person_id", "assignment_id", "record_id")
_PATTERNS: Final = dict.fromkeys(_ID_COLUMNS, _ID) | {
    "primary_therapist_id": _optional(_ID),
    "merged_into_patient_id": _optional(_ID),
    "record_ids": rf"{_optional(f'{_ID}(?: {_ID})*')}(?: \+[0-9a-f]+)?",
    "on_behalf_of": _optional(ON_BEHALF_OF_PATTERN.pattern),
    "birth_date": _optional("[0-9]{4}(?:-[0-9]{2}(?:-[0-9]{2})?)?"),
    "email": _at_most(254, _optional(EMAIL_PATTERN.pattern)),
    "phone_number": _optional(PHONE_PATTERN.pattern),
    "focus": _at_most(64, _optional(CODE_PATTERN.pattern)),
    "changed_fields": _optional("[a-z_]+(?:,[a-z_]+)*"),
    "etag": "[!-~]{1,64}",
    "version_hash": "[0-9a-f]{64}",
}
_LINES: Final = {column: re.compile(rf"(?:(?:{pattern})\n)*+") for column, pattern in _PATTERNS.items()}
"""Matches texts with a line end after each: one match of all takes a fifth of the time of a match of each."""

_FIRST_DAY: Final = "YYYY-01-01"


def invalid(table: Table, column: str, values: Sequence[Any]) -> list[int]:
    """Returns the indexes of the values of a column that no request could have stored."""
    if column == "image":
        return _invalid_images(table, values)
    if int in table.columns[column]:
        return _out_of_range(table, column, values)
    if column not in _LINES or _are_valid(column, {*values} - {None}):
        return []
    return [index for index, value in enumerate(values) if not _are_valid(column, {value} - {None})]


def _out_of_range(table: Table, column: str, values: Sequence[Any]) -> list[int]:
    least, most = BOUNDS.get(f"{table.name}.{column}") or (TIME_BOUNDS if column.endswith("_us") else _INT64)
    numbers = [least if value is None else value for value in values] if len(table.columns[column]) > 1 else values
    if min(numbers) >= least and max(numbers) <= most:
        return []
    return [index for index, number in enumerate(numbers) if not least <= number <= most]


def _are_valid(column: str, texts: set[str]) -> bool:
    lines = "\n".join((*texts, ""))
    if lines.count("\n") != len(texts) or not _LINES[column].fullmatch(lines):
        return False
    return column != "birth_date" or _are_dates(texts - {""})


def _are_dates(texts: set[str]) -> bool:
    """Returns whether dates exist, by their first days where the month or the day is unknown."""
    with suppress(ValueError):
        return all(date.fromisoformat(text + _FIRST_DAY[len(text) :]) for text in texts)
    return False


_RECORDS: Final = {f"{table.name}_version": table for table in TABLES if table.name in IMAGE_COLUMNS}
"""The table of the records, by the table of their versions."""


def _invalid_images(table: Table, texts: Sequence[str]) -> list[int]:
    record = _RECORDS[table.name]
    if _are_images(record, texts):
        return []
    return [index for index, text in enumerate(texts) if not _are_images(record, [text])]


def _are_images(record: Table, texts: Sequence[str]) -> bool:
    """Returns whether each text is the canonical form of a version, and its columns are valid."""
    with suppress(ValueError, RecursionError):
        images = content.parse_all(texts)
        if {dict}.issuperset(map(type, images)) and list(map(canonical_json, images)) == list(texts):
            return all(
                _are_columns(record, names) and _have_valid_values(record, names, images)
                for names in set(map(tuple, images))
            )
    return False


def _are_columns(record: Table, names: tuple[str, ...]) -> bool:
    """Returns whether these are the columns of an image, in their order."""
    in_order = tuple(column for column in IMAGE_COLUMNS[record.name] if column in names)
    return names == in_order and FIRST_IMAGE_COLUMNS[record.name].issubset(names)


def _have_valid_values(record: Table, names: tuple[str, ...], images: Sequence[dict[str, Any]]) -> bool:
    """Returns whether the images with exactly these columns have valid values."""
    columns = zip(*(image.values() for image in images if tuple(image) == names), strict=True)
    return all(_is_valid(record, *column) for column in zip(names, columns, strict=True))


def _is_valid(record: Table, column: str, values: Sequence[Any]) -> bool:
    """Returns whether the values of a column in images could be in the record's table."""
    if not {*record.columns[column]}.issuperset(map(type, values)):
        return False
    if column in JSON_COLUMNS:
        try:
            content.parse_column(column, values)
        except MalformedColumn:
            return False
    return all(map(content.is_storable, {str(value) for value in values})) and not invalid(record, column, values)
