"""Purges of soft-deleted therapists and patients, with their assignments. Their ids remain, and are never reused."""

import json
from itertools import accumulate
from typing import Any, Final, NamedTuple

from caseload_server.domain import enums, limits
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import CallContext
from caseload_server.store import assignments, records
from caseload_server.store.backends.protocol import SerializationConflict
from caseload_server.store.change_log import NewChangeSet
from caseload_server.store.records import PATIENT, RecordKind
from caseload_server.store.write_transaction import Write

PURGE_CALL: Final = CallContext(actor="cli:purge", method="")
"""The actor of a purge in the change log."""
LOG_PURGE: Final = NewChangeSet(0, PURGE_CALL.actor, "", PURGE_CALL.method, "", [])
"""Records a purge of the change log, once it has a time and a change."""
_MAX_RECORDS_PER_BATCH: Final = 100
"""Therapists or patients that one transaction purges, so that writers wait briefly."""
_MAX_ASSIGNMENTS_PER_BATCH: Final = limits.MAX_ASSIGNMENTS_PER_CALL - _MAX_RECORDS_PER_BATCH
"""Assignments that one transaction purges, unless a single record has more."""
_INSERT_PURGED_IDS = "INSERT INTO purged (kind, record_id) SELECT :kind, atom FROM json_each(:ids)"


class PurgedCount(NamedTuple):
    """Number of rows that a transaction purged."""

    records: int
    assignments: int


def select_count(kind: RecordKind[Any]) -> str:
    """Returns the SELECT of the number of records that were deleted before :before_us."""
    return f"SELECT COUNT(*) FROM {kind.name} WHERE deleted_us < :before_us"


def select_deleted_after(kind: RecordKind[Any]) -> str:
    """Returns the SELECT of the number of records that were deleted after :time_us."""
    return f"SELECT COUNT(*) FROM {kind.name} WHERE deleted_us > :time_us"


def purge_batch(write: Write, kind: RecordKind[Any], before_us: int) -> PurgedCount:
    """Purges some of the records that were deleted before a time, oldest first. Purges none when none is left.

    A record and all its assignments are purged in one commit, however many they are: a record that remains can be
    undeleted. Args: before_us, in microseconds since 1970 (UTC).
    """
    deleted, periods = _select_batch(write, kind, before_us)
    if write.lock_clause:
        _lock(write, kind, deleted, periods)
        if _select_batch(write, kind, before_us) != (deleted, periods):
            raise SerializationConflict  # before the lock a record was undeleted, or another purge took it
    _delete(write, "assignment", periods)
    _delete(write, kind.name, deleted)
    write.run(_INSERT_PURGED_IDS, {"kind": kind.name, "ids": _json_ids(deleted)})
    for record in [*periods, *deleted]:
        write.record_change(enums.CHANGE_PURGED, record)
    return PurgedCount(len(deleted), len(periods))


def _select_batch(write: Write, kind: RecordKind[Any], before_us: int) -> tuple[list[Any], list[Assignment]]:
    """Returns the first deleted records whose assignments fit into a batch, or one record, and these assignments."""
    id_column = kind.id_column
    sql = (
        f"SELECT (SELECT COUNT(*) FROM assignment AS period WHERE period.{id_column} = record.{id_column}),"
        f" {kind.columns} FROM {kind.name} AS record WHERE record.deleted_us < :before_us"
        f" ORDER BY record.deleted_us, record.{id_column} LIMIT {_MAX_RECORDS_PER_BATCH}"
    )
    rows = write.run(sql, {"before_us": before_us})
    fitting = sum(total <= _MAX_ASSIGNMENTS_PER_BATCH for total in accumulate(row[0] for row in rows))
    deleted = [kind.record._make(row[1:]) for row in rows[: max(1, fitting)]]
    sql = (
        f"SELECT {assignments.COLUMNS} FROM assignment AS period"
        f" WHERE period.{id_column} IN (SELECT atom FROM json_each(:ids)) ORDER BY period.assignment_id"
    )
    return deleted, [Assignment._make(row) for row in write.run(sql, {"ids": _json_ids(deleted)})]


def _lock(write: Write, kind: RecordKind[Any], deleted: list[Any], periods: list[Assignment]) -> None:
    """Locks the records of a batch, patients before therapists."""
    if kind.name != PATIENT.name:
        records.lock(write, PATIENT, {period.patient_id for period in periods})
    records.lock(write, kind, [record[0] for record in deleted])


def _delete(write: Write, table: str, rows: list[Any]) -> None:
    sql = f"DELETE FROM {table} WHERE {table}_id IN (SELECT atom FROM json_each(:ids))"
    write.run(sql, {"ids": _json_ids(rows)})


def _json_ids(rows: list[Any]) -> str:
    return json.dumps([row[0] for row in rows])
