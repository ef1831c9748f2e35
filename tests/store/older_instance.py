"""What an instance of the version before keys writes to the same database, each in one transaction."""

import json
import secrets
from collections.abc import Callable
from typing import Any

from caseload_server.domain import enums
from caseload_server.store.backends.protocol import Database, Transaction

from tests.store.store_calls import AnyKind

SYSTEM = "urn:example:mrn"


def create(database: Database, kind: AnyKind, record_id: str, name: str, *values: str, created_us: int = 1) -> None:
    """Creates a live record with identifiers of these values."""
    pairs = [[SYSTEM, value] for value in values]
    fields = {**kind.defaults, "display_name": name, "status": enums.STATUS_ACTIVE, "identifiers": json.dumps(pairs)}
    derived = {kind.count_column: 0, "primary_therapist_id": "", "merged_into_patient_id": "", "deleted_us": None}
    times = {"created_us": created_us, "updated_us": created_us, "etag": secrets.token_hex(8)}
    row: dict[str, Any] = {**fields, **derived, **times, kind.id_column: record_id}
    columns = kind.record._fields
    values_sql = ", ".join(f":{column}" for column in columns)

    def work(transaction: Transaction) -> None:
        sql = f"INSERT INTO {kind.name} ({', '.join(columns)}) VALUES ({values_sql})"
        transaction.run(sql, {column: row[column] for column in columns})
        _insert_words(transaction, kind, record_id, name)
        _insert_identifiers(transaction, kind, record_id, pairs)

    database.write(work)


def rename(database: Database, kind: AnyKind, record_id: str, name: str) -> None:
    """Updates the name of a record."""

    def work(transaction: Transaction) -> None:
        _set(transaction, kind, record_id, "display_name", name)
        transaction.run(f"DELETE FROM {kind.name}_name_word WHERE {kind.id_column} = :id", {"id": record_id})
        _insert_words(transaction, kind, record_id, name)

    database.write(_after_lock(database, kind, record_id, work))


def identify(database: Database, kind: AnyKind, record_id: str, *values: str) -> None:
    """Updates the identifiers of a live record."""
    pairs = [[SYSTEM, value] for value in values]

    def work(transaction: Transaction) -> None:
        _set(transaction, kind, record_id, "identifiers", json.dumps(pairs))
        transaction.run(f"DELETE FROM {kind.name}_identifier WHERE {kind.id_column} = :id", {"id": record_id})
        _insert_identifiers(transaction, kind, record_id, pairs)

    database.write(_after_lock(database, kind, record_id, work))


def _after_lock(
    database: Database, kind: AnyKind, record_id: str, work: Callable[[Transaction], None]
) -> Callable[[Transaction], None]:
    """Returns work that locks the record first."""

    def locked(transaction: Transaction) -> None:
        transaction.run(kind.select + database.lock_clause, {"id": record_id})
        work(transaction)

    return locked


def _set(transaction: Transaction, kind: AnyKind, record_id: str, column: str, value: str) -> None:
    sql = f"UPDATE {kind.name} SET {column} = :value, etag = :etag WHERE {kind.id_column} = :id"
    transaction.run(sql, {"id": record_id, "value": value, "etag": secrets.token_hex(8)})


def _insert_words(transaction: Transaction, kind: AnyKind, record_id: str, name: str) -> None:
    for word in {*name.lower().replace("-", " ").split()}:
        sql = f"INSERT INTO {kind.name}_name_word ({kind.id_column}, word) VALUES (:id, :word)"
        transaction.run(sql, {"id": record_id, "word": word})


def _insert_identifiers(transaction: Transaction, kind: AnyKind, record_id: str, pairs: list[list[str]]) -> None:
    for system, value in pairs:
        sql = f"INSERT INTO {kind.name}_identifier ({kind.id_column}, system, value, live) VALUES (:id, :s, :v, 1)"
        transaction.run(sql, {"id": record_id, "s": system, "v": value})
