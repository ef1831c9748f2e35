"""Planned ends: ends assignments whose expire_time has passed.

Reads leave an expired assignment out from its expire_time on. The stored state changes later: a sweeper ends the
assignment, or a write that it would block does so first, in its own transaction. Each end has a change set of its own.
The transaction locks a row and reads it again before it ends it, so several processes end each assignment once.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from caseload_server.domain import enums, errors, requests
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import CallContext
from caseload_server.store import records
from caseload_server.store.backends.protocol import Database, Row
from caseload_server.store.counts import CountChanges
from caseload_server.store.records import PATIENT, THERAPIST, RecordKind
from caseload_server.store.write_transaction import Write

EXPIRY_CALL: Final = CallContext(actor="system:expiry", method="")
"""The actor of an expiry in the change log. It is no RPC, so it has no method."""
NOT_AFTER_START: Final = "must lie after start_time"
BATCH_SIZE: Final = 100
"""Assignments that one transaction of the sweeper ends, so that writers wait briefly."""
_COLUMNS: Final = ", ".join(f"period.{column}" for column in Assignment._fields)
_IS_DUE: Final = "period.expire_us IS NOT NULL AND period.expire_us <= :now_us AND period.end_us IS NULL"
_SELECT_OLDEST_DUE = f"""
SELECT {_COLUMNS} FROM assignment AS period WHERE {_IS_DUE}
ORDER BY period.expire_us, period.assignment_id LIMIT {BATCH_SIZE}"""
_SELECT_STILL_DUE = f"""
SELECT {_COLUMNS} FROM assignment AS period
WHERE period.assignment_id IN (SELECT atom FROM json_each(:ids)) AND {_IS_DUE} ORDER BY period.assignment_id"""
SELECT_NEXT = "SELECT MIN(expire_us) FROM assignment WHERE expire_us IS NOT NULL AND end_us IS NULL"
_END = f"""
UPDATE assignment SET end_us = expire_us, end_reason = {enums.END_EXPIRED}, ended_by = :ended_by,
    updated_us = :updated_us, etag = ended.value ->> 1
FROM json_each(:ended) AS ended WHERE assignment_id = ended.value ->> 0"""


def not_expired(at: str) -> str:
    """Returns the SQL condition that an active period is in force at a time. Args: at, the name of the parameter."""
    return f"(period.expire_us IS NULL OR period.expire_us > :{at})"


def in_force(at: str) -> str:
    """Returns the SQL condition that the end of a period, or else its planned end, is after a time."""
    return f"(period.end_us > :{at} OR (period.end_us IS NULL AND {not_expired(at)}))"


def require_future(write: Write, expire_us: int, path: str) -> None:
    """Raises InvalidField unless a planned end lies ahead. A replay is answered before, so it may have passed by then.

    Args: path, the name of the field.
    """
    if expire_us <= write.now_us:
        raise errors.InvalidField(errors.Violation(path, "must lie in the future"))


def demoted(primary: Assignment) -> requests.Assign:
    """Returns the TREATING period that follows a PRIMARY one, with its focus and its planned end."""
    return requests.Assign(primary.therapist_id, primary.patient_id, focus=primary.focus, expire_us=primary.expire_us)


def is_due(write: Write, period: Assignment) -> bool:
    """Returns whether an active period has expired."""
    return period.end_us is None and period.expire_us is not None and period.expire_us <= write.now_us


def end_due(write: Write, periods: Iterable[Assignment]) -> list[Assignment]:
    """Ends those of the active periods that have expired. Returns the others.

    Args: periods, read after the caller locked their patients and therapists.
    """
    remaining: list[Assignment] = []
    due: list[Assignment] = []
    for period in periods:
        (due if is_due(write, period) else remaining).append(period)
    if due:
        _end(write, due)
    return remaining


def _end(write: Write, due: list[Assignment]) -> None:
    """Ends expired periods, each in a change set of its own, in the order in which they expired."""
    counts = CountChanges()
    for period in sorted(due, key=lambda one: (one.expire_us or 0, one.assignment_id)):
        counts.add(period, -1)
        fields = "state", "end_time", "end_reason", "ended_by"
        write.by_server(EXPIRY_CALL).record_change(enums.CHANGE_UPDATED, period, *fields, before=period)
    ended = json.dumps([(period.assignment_id, write.new_etag()) for period in due])
    write.run(_END, {"ended": ended, "ended_by": EXPIRY_CALL.actor, "updated_us": write.now_us})
    counts.save(write)


def select_due(kind: RecordKind[Any]) -> str:
    """Returns the SELECT of the expired periods of the record :id."""
    return f"SELECT {_COLUMNS} FROM assignment AS period WHERE period.{kind.id_column} = :id AND {_IS_DUE}"


def sweep_record(write: Write, kind: RecordKind[Any], record_id: str) -> None:
    """Ends every expired period of a therapist or patient, which a write is about to lock.

    Call it before the write locks a therapist: it locks the patients of the periods, and then their therapists.
    """
    if kind.name == PATIENT.name:
        records.lock(write, PATIENT, [record_id])
    due = _periods(write.run(select_due(kind), {"id": record_id, "now_us": write.now_us}))
    if due:
        _lock_and_end(write, due)


def sweep(database: Database, clock: Callable[[], int], end_batch: Callable[[], int]) -> int | None:
    """Ends what has expired, in batches. Other processes may end the same periods at once.

    Args: clock, returns microseconds since 1970 (UTC); end_batch, runs sweep_batch in a transaction. Returns the first
    expire_time of the remaining active periods, in microseconds since 1970 (UTC); None if no end is planned.
    """
    while True:
        next_us: int | None = database.read(SELECT_NEXT)[0][0]
        if next_us is None or next_us > clock() or not end_batch():
            return next_us


def sweep_batch(write: Write) -> int:
    """Ends the periods that expired first, BATCH_SIZE at most. Returns their number."""
    due = _periods(write.run(_SELECT_OLDEST_DUE, {"now_us": write.now_us}))
    return _lock_and_end(write, due) if due else 0


def _lock_and_end(write: Write, due: list[Assignment]) -> int:
    """Ends those of the periods that are still due once they are locked. Returns their number."""
    if write.lock_clause:
        records.lock(write, PATIENT, {period.patient_id for period in due})
        records.lock(write, THERAPIST, {period.therapist_id for period in due})
        ids = json.dumps([period.assignment_id for period in due])
        due = _periods(write.run(_SELECT_STILL_DUE, {"ids": ids, "now_us": write.now_us}))
    end_due(write, due)
    return len(due)


def count_due(write: Write, therapist_id: str) -> int:
    """Returns how many periods of a therapist have expired and are still counted."""
    return len(write.run(select_due(THERAPIST), {"id": therapist_id, "now_us": write.now_us}))


def _periods(rows: list[Row]) -> list[Assignment]:
    return [Assignment._make(row) for row in rows]
