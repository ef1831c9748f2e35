"""What a store holds, as lines of JSON: the same content gives the same lines in every database.

What a store is known by and what it signs with are none: two stores that hold the same differ in them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, repeat
from json.scanner import make_scanner
from typing import Any, Final, NamedTuple, get_args, get_type_hints

from caseload_server.domain.records import Assignment, Patient, Therapist
from caseload_server.store.backends.protocol import Row, Transaction, Value
from caseload_server.store.search import name_words

PAGE_ROWS: Final = 1000
DIGEST: Final = "sha256"
dumps: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=bytes.hex).encode
_scan = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]  # typeshed takes it for a class


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


def found_by(table: Table, rows: list[Row]) -> dict[str, list[Row]]:
    """The rows that therapists or patients are found by, by table: they say again what the records say.

    Column by column, because record by record it takes several times as long. Raises Malformed, for any column.
    """
    columns = dict(zip(table.columns, zip(*rows, strict=True), strict=True))
    ids = columns[table.key[0]]

    def flat(groups: Iterable[Iterable[tuple[Value, ...]]]) -> list[Row]:
        return [(one, *more) for one, group in zip(ids, groups, strict=True) for more in group]

    _nested("annotations", columns["annotations"])  # no one is found by these
    live = [1 if deleted_us is None else None for deleted_us in columns["deleted_us"]]
    identifiers = _nested("identifiers", columns["identifiers"])
    found = {
        f"{table.name}_name_word": flat(zip(name_words(name)) for name in columns["display_name"]),
        f"{table.name}_identifier": flat(
            [(*pair, is_live) for pair in pairs] for is_live, pairs in zip(live, identifiers, strict=True)
        ),
    }
    if "specialties" in columns:
        found["therapist_specialty"] = flat(map(zip, _nested("specialties", columns["specialties"])))
    return found


def _nested(column: str, texts: tuple[str, ...]) -> list[Any]:
    """What a column holds as JSON. Raises Malformed."""
    with suppress(ValueError, RecursionError):
        scanned = scan(texts)
        if _IS_NESTED[column](scanned):
            return scanned
    raise Malformed(column)


def scan(texts: Sequence[str]) -> list[Any]:
    """The values of texts that are one of JSON each, and nothing else. Raises ValueError, RecursionError."""
    scanned = list(map(_scan, texts, repeat(0)))  # ends early where a text holds nothing
    if [end for _, end in scanned] != list(map(len, texts)):
        raise ValueError
    return [value for value, _ in scanned]


def _are(kind: type, values: Iterable[Any]) -> bool:
    return {kind}.issuperset(map(type, values))


def _are_lists_of_texts(values: list[Any]) -> bool:
    return _are(list, values) and _are(str, chain.from_iterable(values))


def _are_lists_of_pairs(values: list[Any]) -> bool:
    if not _are(list, values):
        return False
    pairs = list(chain.from_iterable(values))
    return _are_lists_of_texts(pairs) and {2}.issuperset(map(len, pairs))


def _are_maps_of_texts(values: list[Any]) -> bool:
    return _are(dict, values) and _are(str, chain.from_iterable(map(dict.values, values)))


_IS_NESTED: Final[dict[str, Callable[[list[Any]], bool]]] = {
    "annotations": _are_maps_of_texts,
    "identifiers": _are_lists_of_pairs,
    "specialties": _are_lists_of_texts,
}
