"""One write: what it changes, its revision, its line in the change log, and what a repeat is answered with."""

import hashlib
import json
import secrets
from typing import Any, Final, NamedTuple

from uuid_utils import uuid7

from caseload_server.domain import errors
from caseload_server.domain.limits import MAX_ASSIGNMENTS_PER_CALL
from caseload_server.domain.records import Assignment, Patient, Therapist
from caseload_server.domain.requests import CallContext
from caseload_server.domain.results import Outcome
from caseload_server.store.backends.protocol import Parameters, Transaction, Value

CREATED: Final = 1
UPDATED: Final = 2
DELETED: Final = 3
UNDELETED: Final = 4
PURGED: Final = 5

MOST_CHANGES_A_SET: Final = 3 * MAX_ASSIGNMENTS_PER_CALL + 1
"""Of a transfer that ends and replaces a period for each it begins."""

REQUEST_US: Final = 24 * 3600 * 1_000_000
"""How long a request_id is remembered."""

MADE: Final = "server:"
"""What a request_id begins with that the caller did not send."""

Record = Therapist | Patient | Assignment

_HEAD = "SELECT head_revision FROM store"
_NEXT_REVISION = "UPDATE store SET head_revision = head_revision + 1 RETURNING head_revision"
_ADD_CHANGE_SET = """
INSERT INTO change_set (revision, committed_us, actor, method, request_id)
SELECT head_revision, :committed_us, :actor, :method, :request_id FROM store"""
_ADD_CHANGES = """
INSERT INTO change (revision, position, kind, changed_fields, therapist_id, patient_id, assignment_id)
SELECT head_revision, key, CAST(value ->> 0 AS BIGINT), value ->> 1, value ->> 2, value ->> 3, value ->> 4
FROM json_each(:changes), store"""
# Written and not only looked up: of two calls at once the second waits here for the first, and the answer of a repeat
# is committed behind the first one's commit, also on a standby.
_CLAIM_REQUEST = """
INSERT INTO request (actor, request_id, method, fingerprint, record_ids, effect, revision, created_us)
VALUES (:actor, :request_id, :method, :fingerprint, '', 0, -1, :now_us)
ON CONFLICT (actor, request_id) DO UPDATE SET actor = excluded.actor
RETURNING method, fingerprint, record_ids, effect, revision, created_us"""
_REMEMBER_REQUEST = """
UPDATE request SET method = :method, fingerprint = :fingerprint, record_ids = :record_ids, effect = :effect,
    revision = (SELECT head_revision FROM store), created_us = :now_us
WHERE actor = :actor AND request_id = :request_id
RETURNING revision"""
_FORGET_REQUESTS = """
DELETE FROM request WHERE (actor, request_id) IN (
    SELECT actor, request_id FROM request WHERE created_us <= :since_us ORDER BY created_us LIMIT 2{skip_locked})"""


class StoreKeys(NamedTuple):
    """What a store is known by, and what it signs with."""

    store_id: str
    secret: bytes

    def revision(self, number: int) -> str:
        """A revision as callers see it: opaque, and refused by any other store."""
        return f"{self.store_id}.{number}"

    def number(self, revision: str) -> int:
        """The number of a revision of this store. Raises RevisionForeign."""
        store_id, _, number = revision.partition(".")
        if store_id != self.store_id or not (number.isascii() and number.isdigit() and len(number) < 19):
            raise errors.RevisionForeign
        return int(number)

    def fingerprint(self, call: CallContext) -> bytes:
        """Keyed, so that what is kept for 24 hours tells nothing of the request."""
        return hashlib.blake2b(call.fingerprint, key=self.secret, digest_size=16).digest()


class Write:
    """A write under way: the transaction, who asked, one instant, and the changes noted so far."""

    def __init__(self, transaction: Transaction, call: CallContext, now_us: int, keys: StoreKeys, row_lock: str) -> None:
        self.run = transaction.run
        self._run_all = transaction.run_all
        self.row_lock = row_lock
        self.call = call
        self.now_us = now_us
        self._keys = keys
        self._request: dict[str, Value] = {
            "actor": call.actor,
            "request_id": call.request_id,
            "method": call.method,
            "fingerprint": keys.fingerprint(call) if call.request_id else b"",
            "now_us": now_us,
        }
        self._changes: list[tuple[Value, ...]] = []
        self._made: set[str] = set()

    def new_id(self) -> str:
        """A UUIDv7: ids made later sort later, so lists ordered by id grow at their end."""
        made = str(uuid7())
        self._made.add(made)
        return made

    def new_etag(self) -> str:
        """A random version: no counter, which a restored backup would run through again with other contents."""
        made = secrets.token_hex(8)
        self._made.add(made)
        return made

    def note(self, kind: int, record: Record, *fields: str) -> None:
        """Adds a line to the change log: what happened to which record, and the names of the fields that differ."""
        ids = (getattr(record, name, None) for name in ("therapist_id", "patient_id", "assignment_id"))
        self._changes.append((kind, ",".join(fields), *ids))

    def replayed(self) -> tuple[list[str], int, int] | None:
        """The records' ids, the effect and the revision that this request_id was answered with before, if it was.

        Raises RequestIdReused where it was another request.
        """
        if not self.call.request_id:
            return None
        [(method, fingerprint, record_ids, effect, revision, created_us)] = self.run(_CLAIM_REQUEST, self._request)
        if revision < 0 or created_us <= self.now_us - REQUEST_US:
            return None
        if (method, fingerprint) != (self.call.method, self._request["fingerprint"]):
            raise errors.RequestIdReused
        return record_ids.split(), effect, revision

    def finish(self, answered: list[Any], effect: int) -> Outcome[list[Any]]:
        """Writes the log and remembers the request; the revision is taken last, so that it is in commit order.

        All in one journey to the database: from taking a revision to the commit every other writer waits.
        """
        if self.call.validate_only:
            return Outcome([self._without_made(record) for record in answered], int(effect), "")
        statements = self._log() if self._changes else []
        if self.call.request_id:
            statements += self._remember(" ".join(record[0] for record in answered), int(effect))
        [(revision,)] = self._run_all(statements or [(_HEAD, {})])
        return Outcome(answered, int(effect), self._keys.revision(revision))

    def _log(self) -> list[tuple[str, Parameters]]:
        """One change set; several where a purge noted more than a page or a message may hold."""
        call = self.call
        change_set: Parameters = {
            "committed_us": self.now_us,
            "actor": call.actor,
            "method": call.method,
            "request_id": "" if call.request_id.startswith(MADE) else call.request_id,
        }
        return [
            statement
            for first in range(0, len(self._changes), MOST_CHANGES_A_SET)
            for statement in (
                (_NEXT_REVISION, {}),
                (_ADD_CHANGE_SET, change_set),
                (_ADD_CHANGES, {"changes": json.dumps(self._changes[first : first + MOST_CHANGES_A_SET])}),
            )
        ]

    def _remember(self, record_ids: str, effect: int) -> list[tuple[str, Parameters]]:
        outcome = {**self._request, "record_ids": record_ids, "effect": effect}
        # Two are forgotten for one that is remembered, so that none pile up.
        forget = _FORGET_REQUESTS.format(skip_locked=" FOR UPDATE SKIP LOCKED" if self.row_lock else "")
        return [(_REMEMBER_REQUEST, outcome), (forget, {"since_us": self.now_us - REQUEST_US})]

    def _without_made(self, record: Record) -> Record:
        """Ids and etags that were made up for a write that is rolled back name nothing."""
        blank: dict[str, Any] = {
            name: "" for name in ("etag", record._fields[0]) if getattr(record, name) in self._made
        }
        return record._replace(**blank)
