"""The rows of identifiers. Of the live records with the same key of an identifier, one holds it."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from caseload_server.domain.text_folding import identifier_key
from caseload_server.store.write_transaction import Write


@cache
def _insert(kind: str) -> str:
    """Returns the INSERT of an identifier. It returns no row if another live record has it, or holds its key."""
    return (
        f"INSERT INTO {kind}_identifier ({kind}_id, system, value, live, value_key, holds_key)"
        " VALUES (:id, :system, :value, :live, :value_key, :holds_key) ON CONFLICT DO NOTHING RETURNING 1"
    )


def unique_key(identifier: Sequence[Any]) -> tuple[str, str]:
    """Returns what only one live record holds: the system and the key of an identifier.

    All writers insert identifiers in the order of these, so that none deadlock.
    """
    system, value, *_ = identifier
    return system, identifier_key(value)


def insert(write: Write, kind: str, record: Any, before: Any = None) -> list[list[str]]:
    """Inserts the identifiers of a record. Returns those that another live record has, as [system, value].

    Args: kind, the name of the table; before, the record before the change. It may have an identifier whose key another
    record holds, since before there were keys: it can keep it.
    """
    own = json.loads(before.identifiers) if before is not None and before.deleted_us is None else []
    taken: list[list[str]] = []
    held: set[tuple[str, str]] = set()
    for pair in sorted(json.loads(record.identifiers), key=unique_key):
        key = unique_key(pair)  # a record may have two identifiers with one key, since before there were keys
        if insert_one(write, kind, record, pair, holds_key=key not in held):
            held.add(key)
        elif pair not in own or not insert_one(write, kind, record, pair, holds_key=False):
            taken.append(pair)
    return taken


def insert_one(write: Write, kind: str, record: Any, identifier: Sequence[str], *, holds_key: bool = True) -> bool:
    """Inserts an identifier of a record. Returns False if another live record has it, or holds its key.

    Args: kind, as `insert`; holds_key, whether a live record shall hold the key.
    """
    system, value = identifier
    live = 1 if record.deleted_us is None else None
    row = {"id": record[0], "system": system, "value": value, "live": live, "value_key": identifier_key(value)}
    return bool(write.run(_insert(kind), {**row, "holds_key": live if holds_key else None}))


def release_keys(write: Write, kind: str, record: Any, pairs: list[list[str]]) -> None:
    """Lets another record hold the keys of these identifiers, and lets the record keep those that it has.

    Two records had them before there were keys. Args: kind, the name of the table.
    """
    keys = set(map(unique_key, json.loads(record.identifiers)))
    for system, key in sorted(keys.intersection(map(unique_key, pairs))):
        write.run(
            f"UPDATE {kind}_identifier SET holds_key = NULL"
            f" WHERE {kind}_id = :id AND system = :system AND value_key = :key",
            {"id": record[0], "system": system, "key": key},
        )


def holders(write: Write, kind: str, system: str, value: str) -> list[str]:
    """Returns the id of the live record that has an identifier, unless it has just given it up.

    Args: kind, the name of the table.
    """
    rows = write.run(
        f"SELECT DISTINCT {kind}_id FROM {kind}_identifier WHERE system = :system"
        " AND (value_key = :value_key AND holds_key = 1 OR value = :value AND live = 1)",
        {"system": system, "value": value, "value_key": identifier_key(value)},
    )
    return [record_id for (record_id,) in rows]
