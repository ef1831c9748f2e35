"""Makes the words and keys of records that have none, or outdated ones.

An older release of the server may have written a record, before an upgrade or beside it. It leaves the columns of keys
as they are, so `keyed_etag` then differs from the version of the rules and the etag of the record. Nothing else of a
record changes: it keeps its etag and its time, and there is no change set.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from caseload_server.domain.text_folding import identifier_key
from caseload_server.store import search
from caseload_server.store.backends.protocol import Database, Row, Transaction
from caseload_server.store.records import PATIENT, THERAPIST, RecordKind

BATCH_SIZE: Final = 500
"""Records of one transaction, so that writers wait briefly."""
_IS_OUTDATED: Final = f"record.keyed_etag <> '{search.RULES_VERSION}:' || record.etag"
"""The condition of the indexes *_without_keys. Both must have the same text."""


class KeyCatchUp:
    """Makes missing words and keys, beside writers. Several processes may do it at once."""

    def __init__(self, database: Database) -> None:
        """Args: database, migrated."""
        self._database = database

    def count(self) -> int:
        """Returns the number of records without current keys. It reads all of them."""
        counts = [f"(SELECT COUNT(*) FROM {kind.name} AS record WHERE {_IS_OUTDATED})" for kind in (PATIENT, THERAPIST)]
        return int(self._database.read(f"SELECT {' + '.join(counts)}")[0][0])

    def run(self) -> Iterator[int]:
        """Makes the keys of the records without current ones, in the order of their ids. Yields their numbers.

        It yields after each transaction. It passes over records that a write has locked, and over those that an older
        instance writes meanwhile behind it: the next run makes their keys. Raises what Database.write raises.
        """
        for kind in (PATIENT, THERAPIST):
            # A key without a holder goes to the oldest record with it, before a younger, outdated one can take it.
            for select in (_select_without_holder(kind), _select_outdated(kind)):
                after = ""
                if not self._database.read(f"{select} LIMIT 1", {"after": after}):
                    continue
                while ids := self._database.write(partial(self._run_batch, kind, select, after)):
                    yield len(ids)
                    after = ids[-1]

    def _run_batch(self, kind: RecordKind[Any], select: str, after: str, transaction: Transaction) -> list[str]:
        """Makes the keys of the first records after an id. Returns their ids."""
        lock = self._database.lock_clause and f"{self._database.lock_clause} SKIP LOCKED"
        rows = transaction.run(f"{select} LIMIT {BATCH_SIZE}{lock}", {"after": after})
        records = [kind.record._make(row) for row in rows]
        if records:
            _update_words(transaction, kind, records)
            _update_identifiers(transaction, kind, records)
            _update_keys(transaction, kind, records)
        return [record[0] for record in records]


def _select_outdated(kind: RecordKind[Any]) -> str:
    return f"{_select_after(kind)} AND {_IS_OUTDATED} ORDER BY record.{kind.id_column}"


def _select_without_holder(kind: RecordKind[Any]) -> str:
    """Returns the SELECT of records with a key without a holder: that was deleted, or has another key now.

    It looks up the holder of each. PostgreSQL would turn NOT EXISTS into a join that reads the whole table.
    """
    table = f"{kind.name}_identifier"
    return (
        f"{_select_after(kind)} AND record.{kind.id_column} IN ("
        f"SELECT waiting.{kind.id_column} FROM {table} AS waiting"
        " WHERE waiting.live = 1 AND waiting.holds_key IS NULL AND waiting.value_key <> ''"
        f" AND (SELECT 1 FROM {table} AS holder WHERE holder.value_key = waiting.value_key AND holder.system ="
        f" waiting.system AND holder.holds_key = 1) IS NULL) ORDER BY record.{kind.id_column}"
    )


def _select_after(kind: RecordKind[Any]) -> str:
    return f"SELECT {kind.columns} FROM {kind.name} AS record WHERE record.{kind.id_column} > :after"


def _update_words(transaction: Transaction, kind: RecordKind[Any], records: list[Any]) -> None:
    """Replaces the words of those records whose words differ: most names have the same words by all rules."""
    ids = _json_ids(records)
    id_is_listed = f"{kind.id_column} IN (SELECT atom FROM json_each(:ids))"
    stored = defaultdict(set)
    for record_id, word in transaction.run(
        f"SELECT {kind.id_column}, word FROM {kind.name}_name_word WHERE {id_is_listed}", {"ids": ids}
    ):
        stored[record_id].add(word)
    wanted = {record[0]: search.record_words(record.display_name, json.loads(record.aliases)) for record in records}
    differing = {record_id: words for record_id, words in wanted.items() if stored[record_id] != {*words}}
    transaction.run(f"DELETE FROM {kind.name}_name_word WHERE {id_is_listed}", {"ids": json.dumps([*differing])})
    rows = [(record_id, word) for record_id, words in differing.items() for word in words]
    transaction.run(
        f"INSERT INTO {kind.name}_name_word ({kind.id_column}, word)"
        " SELECT new.value ->> 0, new.value ->> 1 FROM json_each(:rows) AS new",
        {"rows": json.dumps(rows)},
    )


def _update_identifiers(transaction: Transaction, kind: RecordKind[Any], records: list[Any]) -> None:
    """Gives identifiers their keys. Of several live records with the same key, the oldest holds it.

    It deletes and inserts rows, because an INSERT can leave out a row whose key another write has just taken.
    """
    claims = _outdated_identifiers(transaction, kind, records)
    if not claims:
        return
    first_claims: dict[tuple[str, str], Row] = {}
    for claim in claims:
        _, system, _, live, key, _ = claim
        if live:
            first_claims.setdefault((system, key), claim)
    in_lock_order = {"claims": json.dumps([first_claims[key] for key in sorted(first_claims)])}
    transaction.run(_delete_identifiers(kind), {"claims": json.dumps(claims)})
    transaction.run(_release_from_younger(kind), in_lock_order)
    transaction.run(_insert_identifiers(kind, holds_key="1"), in_lock_order)
    transaction.run(_insert_identifiers(kind, holds_key="NULL"), {"claims": json.dumps(claims)})


def _outdated_identifiers(transaction: Transaction, kind: RecordKind[Any], records: list[Any]) -> list[Row]:
    """Returns the identifiers without the right key, and live ones that do not hold it, those of old records first.

    Each is the id, system, value, 1 or None for live, key, and the time of the record's creation.
    """
    found = transaction.run(
        f"SELECT {kind.id_column}, system, value, live, value_key, holds_key FROM {kind.name}_identifier"
        f" WHERE {kind.id_column} IN (SELECT atom FROM json_each(:ids))",
        {"ids": _json_ids(records)},
    )
    created_us = {record[0]: record.created_us for record in records}
    outdated = [
        (record_id, system, value, live, key, created_us[record_id])
        for record_id, system, value, live, stored_key, holds_key in found
        if stored_key != (key := identifier_key(value)) or holds_key != live
    ]
    return sorted(outdated, key=lambda claim: (claim[5], *claim[:3]))


def _delete_identifiers(kind: RecordKind[Any]) -> str:
    return (
        f"DELETE FROM {kind.name}_identifier WHERE ({kind.id_column}, system, value) IN"
        " (SELECT old.value ->> 0, old.value ->> 1, old.value ->> 2 FROM json_each(:claims) AS old)"
    )


def _release_from_younger(kind: RecordKind[Any]) -> str:
    """Returns the UPDATE that takes each of the :claims from a holder that was created later."""
    table, record_id = f"{kind.name}_identifier", kind.id_column
    return (
        f"UPDATE {table} SET holds_key = NULL FROM json_each(:claims) AS claim, {kind.name} AS record"
        f" WHERE {table}.system = claim.value ->> 1 AND {table}.value_key = claim.value ->> 4"
        f" AND {table}.holds_key = 1 AND record.{record_id} = {table}.{record_id}"
        f" AND (record.created_us, record.{record_id}) > (CAST(claim.value ->> 5 AS BIGINT), claim.value ->> 0)"
    )


def _insert_identifiers(kind: RecordKind[Any], holds_key: str) -> str:
    """Returns the INSERT of :claims, which leaves out those whose row exists, or whose key is taken."""
    return (
        f"INSERT INTO {kind.name}_identifier ({kind.id_column}, system, value, live, value_key, holds_key)"
        " SELECT new.value ->> 0, new.value ->> 1, new.value ->> 2, CAST(new.value ->> 3 AS BIGINT), new.value ->> 4,"
        f" {holds_key} FROM json_each(:claims) AS new WHERE TRUE ON CONFLICT DO NOTHING"
    )


def _update_keys(transaction: Transaction, kind: RecordKind[Any], records: list[Any]) -> None:
    columns = search.KEY_COLUMNS
    values = ", ".join(f"{column} = new.value ->> {index}" for index, column in enumerate(columns, 1))
    rows = [[record[0], *map(search.keys(record).__getitem__, columns)] for record in records]
    transaction.run(
        f"UPDATE {kind.name} SET {values} FROM json_each(:rows) AS new WHERE {kind.id_column} = new.value ->> 0",
        {"rows": json.dumps(rows)},
    )


def _json_ids(records: list[Any]) -> str:
    return json.dumps([record[0] for record in records])
