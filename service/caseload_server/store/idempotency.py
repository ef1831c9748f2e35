"""Idempotency of writes: a repeated request_id is answered with the outcome of the first write (AIP-155)."""

from typing import Final, NamedTuple

from caseload_server.domain import errors
from caseload_server.domain.limits import IDEMPOTENCY_TTL_US
from caseload_server.domain.requests import CallContext
from caseload_server.store.backends.protocol import Parameters, Transaction, Value
from caseload_server.store.store_identity import StoreKeys

SERVER_GENERATED_PREFIX: Final = "server:"
"""Starts a request_id that the server generated, because the caller sent none and a commit may be ambiguous."""

# The claim writes a row instead of only reading one. So of two concurrent calls the second waits here for the first.
# And the answer to a repeat commits after the first write, also on a standby.
_CLAIM = """
INSERT INTO request (actor, request_id, method, fingerprint, record_ids, effect, revision, created_us)
VALUES (:actor, :request_id, :method, :fingerprint, '', 0, -1, :now_us)
ON CONFLICT (actor, request_id) DO UPDATE SET actor = excluded.actor
RETURNING method, fingerprint, record_ids, effect, revision, created_us"""
_STORE_OUTCOME = """
UPDATE request SET method = :method, fingerprint = :fingerprint, record_ids = :record_ids, effect = :effect,
    revision = (SELECT head_revision FROM store), created_us = :now_us
WHERE actor = :actor AND request_id = :request_id
RETURNING revision"""
_DELETE_EXPIRED = """
DELETE FROM request WHERE (actor, request_id) IN (
    SELECT actor, request_id FROM request WHERE created_us <= :since_us ORDER BY created_us LIMIT 2{skip_locked})"""


class StoredOutcome(NamedTuple):
    """The answer to a request_id."""

    record_ids: list[str]
    effect: int
    """Number of records that the write created, ended or moved, depending on its verb."""
    revision: int


class IdempotencyKey:
    """The request_id of one write."""

    def __init__(self, transaction: Transaction, call: CallContext, now_us: int, keys: StoreKeys) -> None:
        """Args: now_us, the time of the write in microseconds since 1970 (UTC)."""
        self._run = transaction.run
        self._call = call
        self._now_us = now_us
        self._claim: dict[str, Value] = {
            "actor": call.actor,
            "request_id": call.request_id,
            "method": call.method,
            "fingerprint": keys.fingerprint(call) if call.request_id else b"",
            "now_us": now_us,
        }

    def find_replay(self) -> StoredOutcome | None:
        """Claims the request_id. Returns the outcome of an earlier write with it, if any. Raises RequestIdReused."""
        if not self._call.request_id:
            return None
        [(method, fingerprint, record_ids, effect, revision, created_us)] = self._run(_CLAIM, self._claim)
        if revision < 0 or created_us <= self._now_us - IDEMPOTENCY_TTL_US:
            return None
        if (method, fingerprint) != (self._call.method, self._claim["fingerprint"]):
            raise errors.RequestIdReused
        return StoredOutcome(record_ids.split(), effect, revision)

    def store_outcome(self, record_ids: str, effect: int, *, skip_locked: str) -> list[tuple[str, Parameters]]:
        """Returns the statements that store the outcome. The first returns the revision. Empty without a request_id.

        Args: record_ids, separated by spaces; skip_locked, the clause that makes a SELECT skip locked rows.
        """
        if not self._call.request_id:
            return []
        outcome = {**self._claim, "record_ids": record_ids, "effect": effect}
        # Each write deletes up to two expired outcomes and stores one, so that they do not accumulate.
        delete_expired = _DELETE_EXPIRED.format(skip_locked=skip_locked)
        return [(_STORE_OUTCOME, outcome), (delete_expired, {"since_us": self._now_us - IDEMPOTENCY_TTL_US})]
