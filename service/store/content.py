"""What a store holds, as lines of JSON: the same content gives the same lines in every database.

What a store is known by and what it signs with are none: two stores that hold the same differ in them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, get_args, get_type_hints

from service.records import Assignment, Patient, Therapist
from service.store.database import Row, Transaction
from service.store.search import name_words

PAGE_ROWS: Final = 1000
DIGEST: Final = "sha256"
dumps: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=bytes.hex).encode
_decode = json.JSONDecoder().raw_decode
_PEOPLE: Final[dict[str, type[Therapist | Patient]]] = {"therapist": Therapist, "patient": Patient}


class Table(NamedTuple):
    """A table whose rows are content."""

    name: str
    columns: dict[str, tuple[type, ...]]
    """Each column with the types that it has in a row; a key of one column or two comes first."""
    key_width: int = 1

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that rows are ordered by."""
        return tuple(self.columns)[: self.key_width]


def _of(record: type) -> dict[str, tuple[type, ...]]:
    return {column: get_args(hint) or (hint,) for column, hint in get_type_hints(record).items()}


_ID_OR_NONE = (str, type(None))
TABLES: Final = (
    Table("store", {"head_revision": (int,), "oldest_revision": (int,)}),
    Table("therapist", _of(Therapist)),
    Table("patient", _of(Patient)),
    Table("assignment", _of(Assignment)),
    Table(
        "change_set",
        {"revision": (int,), "committed_us": (int,), "actor": (str,), "method": (str,), "request_id": (str,)},
    ),
    Table(
        "change",
        {
            "revision": (int,),
            "position": (int,),
            "kind": (int,),
            "changed_fields": (str,),
            "therapist_id": _ID_OR_NONE,
            "patient_id": _ID_OR_NONE,
            "assignment_id": _ID_OR_NONE,
        },
        key_width=2,
    ),
    Table(
        "request",
        {
            "actor": (str,),
            "request_id": (str,),
            "method": (str,),
            "fingerprint": (bytes,),
            "record_ids": (str,),
            "effect": (int,),
            "revision": (int,),
            "created_us": (int,),
        },
        key_width=2,
    ),
    Table("purged", {"kind": (str,), "record_id": (str,)}, key_width=2),
)


def pages(transaction: Transaction, table: Table) -> Iterator[list[Row]]:
    """All rows in the order of the key, so many at a time that memory does not grow with the table."""
    key = ", ".join(table.key)
    select = f"SELECT {', '.join(table.columns)} FROM {table.name}"
    order = f" ORDER BY {key} LIMIT {PAGE_ROWS}"
    rows = transaction.run(select + order)
    while rows:
        yield rows
        after = dict(zip(table.key, rows[-1], strict=False))
        names = ", ".join(f":{column}" for column in table.key)
        rows = transaction.run(f"{select} WHERE ({key}) > ({names}){order}", after)


def lines(table: Table, rows: list[Row]) -> bytes:
    """The rows as lines, `{"table":{"column":value,...}}` each; bytes are hex."""
    columns = tuple(table.columns)
    return "".join(f'{{"{table.name}":{dumps(dict(zip(columns, row, strict=True)))}}}\n' for row in rows).encode()


class Tally:
    """Counts the rows of each table, and digests their lines."""

    def __init__(self) -> None:
        self.rows = {table.name: 0 for table in TABLES}
        self._hash = hashlib.new(DIGEST)

    def add(self, table: Table, count: int, content: bytes) -> None:
        """So many more rows of a table, in these lines."""
        self.rows[table.name] += count
        self._hash.update(content)

    @property
    def digest(self) -> str:
        """The digest of all lines so far."""
        return f"{DIGEST}:{self._hash.hexdigest()}"


_FOUND_COLUMNS: Final = {"name_word": ("word",), "identifier": ("system", "value", "live"), "specialty": ("specialty",)}
FOUND: Final = {
    f"{kind}_{suffix}": (f"{kind}_id", *columns)
    for kind in ("therapist", "patient")
    for suffix, columns in _FOUND_COLUMNS.items()
    if (kind, suffix) != ("patient", "specialty")
}
"""The tables that therapists and patients are found by, each with its columns."""


class Malformed(Exception):
    """A column whose JSON is not what it must be; the text is its name."""


def found_by(table: Table, row: Row) -> dict[str, list[Row]]:
    """The rows that a therapist or patient is found by, by table: they say again what the record says.

    Raises Malformed, for any column of the record.
    """
    record = _PEOPLE[table.name]._make(row)
    _nested("annotations", record.annotations)  # no one is found by these
    live = 1 if record.deleted_us is None else None
    found: dict[str, list[Row]] = {
        f"{table.name}_name_word": [(row[0], word) for word in name_words(record.display_name)],
        f"{table.name}_identifier": [(row[0], *pair, live) for pair in _nested("identifiers", record.identifiers)],
    }
    if isinstance(record, Therapist):
        found["therapist_specialty"] = [(row[0], code) for code in _nested("specialties", record.specialties)]
    return found


def _nested(column: str, text: str) -> Any:
    """What a column holds as JSON. Raises Malformed."""
    if text in {"[]", "{}"}:
        return []
    with suppress(ValueError, RecursionError):
        value, end = _decode(text)
        if end == len(text) and _IS_NESTED[column](value):
            return value
    raise Malformed(column)


def _is_texts(value: Any) -> bool:
    return type(value) is list and {str}.issuperset(map(type, value))


_IS_NESTED: Final[dict[str, Callable[[Any], bool]]] = {
    "annotations": lambda value: type(value) is dict and _is_texts([*value.values()]),
    "identifiers": lambda value: type(value) is list and all(_is_texts(pair) and len(pair) == 2 for pair in value),
    "specialties": _is_texts,
}
