"""The content of a store as JSON Lines. Equal content gives equal lines in every database.

The id and the secret of a store are not content: they differ between two stores with the same records.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, repeat
from json.scanner import make_scanner
from typing import Any, Final, NamedTuple, get_args, get_type_hints

from caseload_server.domain.records import Assignment, Patient, Therapist
from caseload_server.domain.text_folding import identifier_key
from caseload_server.domain.value_formats import CODE_PATTERN
from caseload_server.store import search
from caseload_server.store.backends.protocol import Row, Transaction, Value

PAGE_ROWS: Final = 1000
"""Rows that are read or parsed at once."""
DIGEST_ALGORITHM: Final = "sha256"
dumps: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=bytes.hex).encode


class DuplicateKey(ValueError):
    """A JSON object has a key twice. The argument is the key."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of these pairs. JSON readers differ in which of two equal keys counts. Raises DuplicateKey."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKey(next(key for key in found if keys.count(key) > 1))
    return found


_scan = make_scanner(json.JSONDecoder(object_pairs_hook=_without_duplicates))  # type: ignore[arg-type]  # typeshed
# declares it as a class


class Table(NamedTuple):
    """A table whose rows are part of the content."""

    name: str
    columns: dict[str, tuple[type, ...]]
    """The types of each column's values in a row. The key columns come first."""
    key_width: int = 1
    """Number of key columns."""

    @property
    def key(self) -> tuple[str, ...]:
        """Returns the key columns, by which rows are ordered."""
        return tuple(self.columns)[: self.key_width]


def _columns_of(record: type) -> dict[str, tuple[type, ...]]:
    return {column: get_args(hint) or (hint,) for column, hint in get_type_hints(record).items()}


def _versions_of(record: str, columns: dict[str, tuple[type, ...]]) -> Table:
    key = {f"{record}_id": (str,), "to_revision": (int,)}
    return Table(f"{record}_version", {**key, "to_us": (int,), **columns}, key_width=2)


_ID_OR_NONE = (str, type(None))
TABLES: Final = (
    Table(
        "store",
        {
            "head_revision": (int,),
            "oldest_revision": (int,),
            "chain_revision": (int,),
            "head_hash": (bytes,),
            "oldest_hash": (bytes,),
            "versions_revision": (int,),
            "versions_us": (int,),
        },
    ),
    Table("therapist", _columns_of(Therapist)),
    Table("patient", _columns_of(Patient)),
    Table("same_person", {"patient_id": (str,), "person_id": (str,)}),
    Table("assignment", _columns_of(Assignment)),
    Table(
        "change_set",
        {
            "revision": (int,),
            "committed_us": (int,),
            "actor": (str,),
            "on_behalf_of": (str,),
            "method": (str,),
            "request_id": (str,),
            "hash_version": (int,),
            "hash": (bytes,),
        },
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
            "through_revision": (int, type(None)),
            "version_hash": (str, type(None)),
        },
        key_width=2,
    ),
    _versions_of("therapist", {"image": (str,)}),
    _versions_of("patient", {"merged_into_patient_id": (str,), "image": (str,)}),
    _versions_of("assignment", _columns_of(Assignment)),
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
    """Yields all rows in key order, in pages, so that memory does not grow with the table."""
    key = ", ".join(table.key)
    select = f"SELECT {', '.join(table.columns)} FROM {table.name}"
    order = f" ORDER BY {key} LIMIT {PAGE_ROWS}"
    rows = transaction.run(select + order)
    while rows:
        yield rows
        after = dict(zip(table.key, rows[-1], strict=False))
        names = ", ".join(f":{column}" for column in table.key)
        rows = transaction.run(f"{select} WHERE ({key}) > ({names}){order}", after)


def to_lines(table: Table, rows: list[Row]) -> bytes:
    """Serializes rows as lines of the form `{"table":{"column":value,...}}`. Bytes are written in hex."""
    columns = tuple(table.columns)
    return "".join(f'{{"{table.name}":{dumps(dict(zip(columns, row, strict=True)))}}}\n' for row in rows).encode()


class ContentDigest:
    """Counts the rows of each table and computes a digest of all lines."""

    def __init__(self) -> None:
        self.row_counts = {table.name: 0 for table in TABLES}
        self._hash = hashlib.new(DIGEST_ALGORITHM)

    def add(self, table: Table, row_count: int, lines: bytes) -> None:
        """Adds rows of a table. Args: row_count, number of lines; lines, the serialized rows."""
        self.row_counts[table.name] += row_count
        self._hash.update(lines)

    @property
    def digest(self) -> str:
        """Returns the digest of the lines so far, as "algorithm:hex"."""
        return f"{DIGEST_ALGORITHM}:{self._hash.hexdigest()}"


HOLDS_KEY: Final = "holds_key"
"""The column of identifiers that other records determine too: of several with the same key, the oldest holds it."""
_SEARCH_COLUMNS: Final = {
    "name_word": ("word",),
    "identifier": ("system", "value", "live", "value_key", HOLDS_KEY),
    "specialty": ("specialty",),
}
SEARCH_TABLES: Final = {
    f"{kind}_{suffix}": (f"{kind}_id", *columns)
    for kind in ("therapist", "patient")
    for suffix, columns in _SEARCH_COLUMNS.items()
    if (kind, suffix) != ("patient", "specialty")
}
"""The tables by which therapists and patients are searched, each with its columns. Records determine their rows."""


class MalformedColumn(Exception):
    """The JSON in a column is invalid. The text is the column's name."""


def search_rows(table: Table, rows: list[Row]) -> dict[str, list[Row]]:
    """Returns the rows of the search tables that belong to therapists or patients, by table.

    It works column by column: record by record takes several times as long. Raises MalformedColumn.
    """
    columns = dict(zip(table.columns, zip(*rows, strict=True), strict=True))
    ids = columns[table.key[0]]

    def flatten(groups: Iterable[Iterable[tuple[Value, ...]]]) -> list[Row]:
        return [(record_id, *values) for record_id, group in zip(ids, groups, strict=True) for values in group]

    parse_column("annotations", columns["annotations"])  # only a check: they cannot be searched
    live = [1 if deleted_us is None else None for deleted_us in columns["deleted_us"]]
    identifiers = parse_column("identifiers", columns["identifiers"])
    aliases = parse_column("aliases", columns["aliases"])
    names = map(search.record_words, columns["display_name"], aliases)
    found = {
        f"{table.name}_name_word": flatten(map(zip, names)),
        f"{table.name}_identifier": flatten(
            [(system, value, is_live, identifier_key(value), is_live) for system, value in pairs]
            for is_live, pairs in zip(live, identifiers, strict=True)
        ),
    }
    if "specialties" in columns:
        found["therapist_specialty"] = flatten(map(zip, parse_column("specialties", columns["specialties"])))
    return found


def record_keys(table: Table, rows: list[Row]) -> list[tuple[str, ...]]:
    """Returns the columns search.KEY_COLUMNS of therapists or patients."""
    record_type: Any = Therapist if table.name == "therapist" else Patient
    records = map(record_type._make, rows)
    return [tuple(search.keys(record).values()) for record in records]


def parse_column(column: str, texts: Sequence[str]) -> list[Any]:
    """Parses the JSON of a column, one of JSON_COLUMNS. Raises MalformedColumn."""
    with suppress(ValueError, RecursionError):
        values = parse_all(texts)
        if _HAS_VALID_SHAPE[column](values) and _are_storable(texts, values):
            return values
    raise MalformedColumn(column)


def is_storable(text: str) -> bool:
    """Returns whether every database can store a text: it holds neither NUL nor half of a surrogate pair."""
    return not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text)


def _are_storable(texts: Sequence[str], values: list[Any]) -> bool:
    """Returns whether databases can store what the JSON of a column holds. Only an escape hides what they cannot."""
    pairs = zip(texts, values, strict=True)
    return all(is_storable(found) for text, value in pairs if "\\u" in text for found in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts within the JSON of a column, of valid shape."""
    if isinstance(value, str):
        yield value
    else:
        for one in chain.from_iterable(value.items()) if isinstance(value, dict) else value:
            yield from _texts(one)


def parse_all(texts: Sequence[str]) -> list[Any]:
    """Parses texts that hold one JSON value each and nothing else. Raises ValueError, RecursionError."""
    parsed = list(map(_scan, texts, repeat(0)))  # ends early at an empty text
    if [end for _, end in parsed] != list(map(len, texts)):
        raise ValueError
    return [value for value, _ in parsed]


def _all_of_type(kind: type, values: Iterable[Any]) -> bool:
    return {kind}.issuperset(map(type, values))


def _all_lists_of_strings(values: list[Any]) -> bool:
    return _all_of_type(list, values) and _all_of_type(str, chain.from_iterable(values))


def _all_lists_of_codes(values: list[Any]) -> bool:
    return _all_lists_of_strings(values) and all(map(CODE_PATTERN.fullmatch, {*chain.from_iterable(values)}))


def _all_lists_of_pairs(values: list[Any]) -> bool:
    if not _all_of_type(list, values):
        return False
    pairs = list(chain.from_iterable(values))
    return _all_lists_of_strings(pairs) and {2}.issuperset(map(len, pairs))


def _all_maps_of_strings(values: list[Any]) -> bool:
    return _all_of_type(dict, values) and _all_of_type(str, chain.from_iterable(map(dict.values, values)))


_HAS_VALID_SHAPE: Final[dict[str, Callable[[list[Any]], bool]]] = {
    "aliases": _all_lists_of_strings,
    "annotations": _all_maps_of_strings,
    "identifiers": _all_lists_of_pairs,
    "specialties": _all_lists_of_codes,
}
JSON_COLUMNS: Final = frozenset(_HAS_VALID_SHAPE)
"""The columns of therapists and patients that hold JSON."""
