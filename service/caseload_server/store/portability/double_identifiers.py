"""Finds live records with the same key of an identifier, also in the schema of a release before keys."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

from caseload_server.domain.text_folding import identifier_key
from caseload_server.store.backends.protocol import Transaction, Value

_PAGE_ROWS: Final = 1000
_Carriers = dict[tuple[str, str], set[tuple[int, str]]]
"""By system and key: the time of creation and the id of each record, in microseconds since 1970 (UTC)."""


class Double(NamedTuple):
    """Two live records with the same key of an identifier."""

    kind: str
    """The name of the table."""
    holder_id: str
    """The older record, which holds the key."""
    other_id: str


def find_doubles(transaction: Transaction) -> Iterator[Double]:
    """Yields each record with the key of an older one. It reads all identifiers that are not ASCII."""
    for kind in ("therapist", "patient"):
        for (system, key), carriers in sorted(_changed_by_key(transaction, kind).items()):
            holder, *others = sorted(carriers | _carriers_of_value(transaction, kind, system, key))
            yield from (Double(kind, holder[1], record_id) for _, record_id in others)


def _select(kind: str) -> str:
    return (
        f"SELECT record.created_us, record.{kind}_id, found.system, found.value FROM {kind}_identifier AS found"
        f" JOIN {kind} AS record ON record.{kind}_id = found.{kind}_id WHERE found.live = 1"
    )


def _changed_by_key(transaction: Transaction, kind: str) -> _Carriers:
    """Returns the records with identifiers that differ from their keys. An ASCII value is its own key."""
    columns = f"found.{kind}_id, found.system, found.value"
    sql = (
        f"{_select(kind)} AND octet_length(found.value) <> length(found.value)"
        f" AND ({columns}) > (:id, :system, :value) ORDER BY {columns} LIMIT {_PAGE_ROWS}"
    )
    found: _Carriers = defaultdict(set)
    after: dict[str, Value] = {"id": "", "system": "", "value": ""}
    while rows := transaction.run(sql, after):
        for created_us, record_id, system, value in rows:
            if (key := identifier_key(value)) != value:
                found[system, key].add((created_us, record_id))
        after = dict(zip(after, rows[-1][1:], strict=True))
    return found


def _carriers_of_value(transaction: Transaction, kind: str, system: str, value: str) -> set[tuple[int, str]]:
    sql = f"{_select(kind)} AND found.system = :system AND found.value = :value"
    return {(row[0], row[1]) for row in transaction.run(sql, {"system": system, "value": value})}
