"""Idempotency of writes: a repeated request_id is answered with the outcome of the first write (AIP-155)."""

import json
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from caseload_server.domain import errors
from caseload_server.domain.requests import CallContext
from caseload_server.store.backends.protocol import Row, Transaction
from caseload_server.store.outcome_expiry import ExpiredOutcomes
from caseload_server.store.store_identity import FINGERPRINT_BYTES

SERVER_GENERATED_PREFIX: Final = "server:"
"""Starts a request_id that the server generated, because the caller sent none and a commit may be ambiguous."""
_EFFECT_BITS: Final = 62
"""The bits of an effect that fit into its column, a BIGINT."""
_EFFECT_MASK: Final = (1 << _EFFECT_BITS) - 1

# The claim writes a row instead of only reading one. So of two concurrent calls the second waits here for the first.
# And the answer to a repeat commits after the first write, also on a standby.
_CLAIM = """
INSERT INTO request (actor, request_id, method, fingerprint, record_ids, effect, revision, created_us)
VALUES (:actor, :request_id, :method, :fingerprint, '', 0, -1, :now_us)
ON CONFLICT (actor, request_id) DO UPDATE SET actor = excluded.actor
RETURNING method, fingerprint, record_ids, effect, revision, created_us"""
_STORE_OUTCOMES = f"""
INSERT INTO request (actor, request_id, method, fingerprint, record_ids, effect, revision, created_us)
SELECT value ->> 0, value ->> 1, value ->> 2,
    substr(:fingerprints, CAST(key * {FINGERPRINT_BYTES} + 1 AS INTEGER), {FINGERPRINT_BYTES}),
    value ->> 3, CAST(value ->> 4 AS BIGINT), head_revision + CAST(value ->> 5 AS BIGINT), CAST(value ->> 6 AS BIGINT)
FROM json_each(:outcomes), store WHERE true
ON CONFLICT (actor, request_id) DO UPDATE SET method = excluded.method, fingerprint = excluded.fingerprint,
    record_ids = excluded.record_ids, effect = excluded.effect, revision = excluded.revision,
    created_us = excluded.created_us"""
_SELECT_REVISION = "SELECT revision FROM request WHERE actor = :actor AND request_id = :request_id"
_DELETE_EXPIRED = """
DELETE FROM request WHERE (actor, request_id) IN (
    SELECT actor, request_id FROM (
        SELECT actor, request_id, revision, created_us FROM request WHERE created_us <= :before_us
        ORDER BY created_us LIMIT :limit{skip_locked}) AS oldest
    WHERE revision < :through_revision OR (revision = :through_revision AND created_us <= :last_us))"""


class StoredOutcome(NamedTuple):
    """The answer to a request_id."""

    record_ids: list[str]
    effect: int
    """Number of records that the write created, ended or moved, or a mask of the entries that a batch created."""
    revision: int


class NewOutcome(NamedTuple):
    """The answer to a request_id, to be stored."""

    call: CallContext
    fingerprint: bytes
    """As StoreKeys.fingerprint."""
    record_ids: str
    """Separated by spaces."""
    effect: int
    """As StoredOutcome.effect."""
    now_us: int
    """The time of the write in microseconds since 1970 (UTC)."""


def find_replay(
    run: Callable[..., list[Row]], call: CallContext, fingerprint: bytes, now_us: int, expired: ExpiredOutcomes
) -> StoredOutcome | None:
    """Claims the request_id of a call. Returns the outcome of an earlier write with it, if any.

    Args: run, as Transaction.run; fingerprint, as StoreKeys.fingerprint; now_us, in microseconds since 1970 (UTC).
    Raises RequestIdReused.
    """
    claim = {
        "actor": call.actor,
        "request_id": call.request_id,
        "method": call.method,
        "fingerprint": fingerprint,
        "now_us": now_us,
    }
    [(method, stored_fingerprint, record_ids, effect, revision, created_us)] = run(_CLAIM, claim)
    if revision < 0 or expired.include(revision, created_us):
        return None
    if (method, stored_fingerprint) != (call.method, fingerprint):
        raise errors.RequestIdReused
    return StoredOutcome(*_decode(record_ids, effect), revision)


def _encode(outcome: NewOutcome) -> tuple[str, int]:
    """Returns the columns record_ids and effect.

    The mask of a batch may have more bits than the column effect. The others follow the ids, after a plus sign, which
    no id has.
    """
    others = outcome.effect >> _EFFECT_BITS
    record_ids = f"{outcome.record_ids} +{others:x}" if others else outcome.record_ids
    return record_ids, outcome.effect & _EFFECT_MASK


def _decode(record_ids: str, effect: int) -> tuple[list[str], int]:
    """Returns the ids and the effect. Args: the columns."""
    ids, _, others = record_ids.partition("+")
    return ids.split(), effect | int(others or "0", 16) << _EFFECT_BITS


def store_outcomes(
    transaction: Transaction,
    outcomes: Sequence[tuple[NewOutcome, int]],
    expired: ExpiredOutcomes,
    *,
    skip_locked: bool,
) -> None:
    """Stores outcomes, each with its revision minus the head revision. Deletes up to twice as many expired ones.

    Args: skip_locked, whether to leave expired outcomes that another transaction has locked.
    """
    if not outcomes:
        return
    rows = [
        (one.call.actor, one.call.request_id, one.call.method, *_encode(one), offset, one.now_us)
        for one, offset in outcomes
    ]
    fingerprints = b"".join(one.fingerprint for one, _ in outcomes)
    # More than one for each that is stored, so that they do not accumulate. Before the new ones: the outcome of a write
    # that changes nothing has the revision of an earlier write, which can have expired.
    delete_expired = _DELETE_EXPIRED.format(skip_locked=" FOR UPDATE SKIP LOCKED" if skip_locked else "")
    transaction.run(delete_expired, {**expired._asdict(), "limit": 2 * len(outcomes)})
    transaction.run(_STORE_OUTCOMES, {"outcomes": json.dumps(rows), "fingerprints": fingerprints})


def stored_revision(transaction: Transaction, outcome: NewOutcome) -> int:
    """Returns the revision that was stored for an outcome. The head may have moved since."""
    call = outcome.call
    [(revision,)] = transaction.run(_SELECT_REVISION, {"actor": call.actor, "request_id": call.request_id})
    return int(revision)
