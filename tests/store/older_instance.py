"""What an instance of the version before keys and versions writes to the same database, each in one transaction."""

import json
import secrets
from collections.abc import Callable
from typing import Any

from caseload_server.domain import enums
from caseload_server.store import RelationshipStore
from caseload_server.store.backends.protocol import Database, Transaction, Value
from caseload_server.store.hash_chain import FORMAT_WITHOUT_VERSIONS, next_hash

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


def update_email(store: RelationshipStore, patient_id: str, email: str, at_us: int) -> None:
    """Updates the email of a patient with a change set, and without a version. Args: at_us, by its clock."""
    head = store.log_head()
    columns: tuple[Value, ...] = (at_us, "older", "", "/caseload.v1.PatientService/UpdatePatient", "")
    changes = [(enums.CHANGE_UPDATED, "email", None, patient_id, None, None)]
    names = ("us", "actor", "behalf", "method", "request")
    values = {
        **dict(zip(names, columns, strict=True)),
        "hash": next_hash(head.hash, head.revision + 1, columns, changes, FORMAT_WITHOUT_VERSIONS),
        "id": patient_id,
        "email": email,
        "etag": secrets.token_hex(8),
    }

    def work(transaction: Transaction) -> None:
        for statement in _UPDATE_EMAIL:
            transaction.run(statement, values)

    store._database.write(work)


_UPDATE_EMAIL = (
    "UPDATE store SET head_revision = head_revision + 1, head_hash = :hash",
    "UPDATE patient SET email = :email, etag = :etag, updated_us = :us WHERE patient_id = :id",
    (
        "INSERT INTO change_set (revision, committed_us, actor, on_behalf_of, method, request_id, hash_version, hash)"
        f" SELECT head_revision, :us, :actor, :behalf, :method, :request, {FORMAT_WITHOUT_VERSIONS}, :hash FROM store"
    ),
    (
        "INSERT INTO change (revision, position, kind, changed_fields, patient_id)"
        " SELECT head_revision, 0, 2, 'email', :id FROM store"
    ),
)


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
