"""One write: its transaction, its changes, its revision and its change set."""

import json
import secrets
from typing import Any

from uuid_utils import uuid7

from caseload_server.domain.limits import MAX_CHANGES_PER_SET
from caseload_server.domain.records import Assignment, Patient, Therapist
from caseload_server.domain.requests import CallContext
from caseload_server.store.backends.protocol import Parameters, Transaction, Value
from caseload_server.store.idempotency import SERVER_GENERATED_PREFIX, IdempotencyKey, StoredOutcome
from caseload_server.store.store_identity import StoreKeys

Record = Therapist | Patient | Assignment

_SELECT_HEAD = "SELECT head_revision FROM store"
_NEXT_REVISION = "UPDATE store SET head_revision = head_revision + 1 RETURNING head_revision"
_INSERT_CHANGE_SET = """
INSERT INTO change_set (revision, committed_us, actor, method, request_id)
SELECT head_revision, :committed_us, :actor, :method, :request_id FROM store"""
_INSERT_CHANGES = """
INSERT INTO change (revision, position, kind, changed_fields, therapist_id, patient_id, assignment_id)
SELECT head_revision, key, CAST(value ->> 0 AS BIGINT), value ->> 1, value ->> 2, value ->> 3, value ->> 4
FROM json_each(:changes), store"""


class Write:
    """A write in progress: its transaction, its caller, its time, and the changes so far."""

    def __init__(
        self, transaction: Transaction, call: CallContext, now_us: int, keys: StoreKeys, lock_clause: str
    ) -> None:
        """Args: now_us, in microseconds since 1970 (UTC); lock_clause, as Database.lock_clause."""
        self.run = transaction.run
        self._pipeline = transaction.pipeline
        self.lock_clause = lock_clause
        self.call = call
        self.now_us = now_us
        self._keys = keys
        self._idempotency = IdempotencyKey(transaction, call, now_us, keys)
        self._changes: list[tuple[Value, ...]] = []
        self._generated: set[str] = set()

    def new_id(self) -> str:
        """Returns a UUIDv7 (RFC 9562). Newer ids sort last, so lists that are ordered by id grow at their end."""
        generated = str(uuid7())
        self._generated.add(generated)
        return generated

    def new_etag(self) -> str:
        """Returns a random etag. A counter would repeat values with other contents after a restore."""
        generated = secrets.token_hex(8)
        self._generated.add(generated)
        return generated

    def record_change(self, kind: int, record: Record, *fields: str) -> None:
        """Adds a change to the change set. Args: kind, a CHANGE_ enum; fields, the names of the changed fields."""
        ids = (getattr(record, name, None) for name in ("therapist_id", "patient_id", "assignment_id"))
        self._changes.append((kind, ",".join(fields), *ids))

    def find_replay(self) -> StoredOutcome | None:
        """Returns the outcome of an earlier write with this request_id, if any. Raises RequestIdReused."""
        return self._idempotency.find_replay()

    def finish(self, answered: list[Any], effect: int) -> tuple[list[Any], str]:
        """Writes the change set and the outcome. Returns the records to answer, and the revision.

        The revision is empty where the call only validates, and the head revision where nothing changed. It is taken
        last, in one round trip: from then until the commit, every other writer waits.
        """
        if self.call.validate_only:
            return [self._without_generated(record) for record in answered], ""
        statements = self._change_sets() if self._changes else []
        skip_locked = " FOR UPDATE SKIP LOCKED" if self.lock_clause else ""
        record_ids = " ".join(record[0] for record in answered)
        statements += self._idempotency.store_outcome(record_ids, effect, skip_locked=skip_locked)
        [(revision,)] = self._pipeline(statements or [(_SELECT_HEAD, {})])
        return answered, self._keys.revision(revision)

    def _change_sets(self) -> list[tuple[str, Parameters]]:
        """Returns the statements of one change set, or of several if a purge made too many changes for one."""
        call = self.call
        change_set: Parameters = {
            "committed_us": self.now_us,
            "actor": call.actor,
            "method": call.method,
            "request_id": "" if call.request_id.startswith(SERVER_GENERATED_PREFIX) else call.request_id,
        }
        return [
            statement
            for first in range(0, len(self._changes), MAX_CHANGES_PER_SET)
            for statement in (
                (_NEXT_REVISION, {}),
                (_INSERT_CHANGE_SET, change_set),
                (_INSERT_CHANGES, {"changes": json.dumps(self._changes[first : first + MAX_CHANGES_PER_SET])}),
            )
        ]

    def _without_generated(self, record: Record) -> Record:
        """Clears ids and etags that were generated for a write that is rolled back: they identify nothing."""
        blank: dict[str, Any] = {
            name: "" for name in ("etag", record._fields[0]) if getattr(record, name) in self._generated
        }
        return record._replace(**blank)
