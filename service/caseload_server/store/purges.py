"""Erasing people for good, with their assignments: only their ids stay, so that none is ever given again."""

import json
from itertools import accumulate
from typing import Any, Final, NamedTuple

from caseload_server.domain import enums, limits
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import CallContext
from caseload_server.store import assignments, records
from caseload_server.store.backends.protocol import SerializationConflict
from caseload_server.store.records import PATIENT, RecordKind
from caseload_server.store.write import Write

CALL: Final = CallContext(actor="cli:purge", method="")
_PEOPLE_AT_ONCE: Final = 100
_PERIODS_AT_ONCE: Final = limits.MAX_ASSIGNMENTS_PER_CALL - _PEOPLE_AT_ONCE
"""Both so few that writers wait little."""
_KEEP_IDS = "INSERT INTO purged (kind, record_id) SELECT :kind, atom FROM json_each(:ids)"


class Erased(NamedTuple):
    """How many records went."""

    records: int
    assignments: int


def due(kind: RecordKind[Any]) -> str:
    """The SELECT of how many were deleted before a time."""
    return f"SELECT COUNT(*) FROM {kind.name} WHERE deleted_us < :before_us"


def erase(write: Write, kind: RecordKind[Any], before_us: int) -> Erased:
    """Erases some of those who were deleted before a time, the first deleted first; none at the end.

    Each goes whole, for whoever stays can be undeleted: so in one commit, however many assignments that are.
    """
    everyone, periods = _found(write, kind, before_us)
    if write.lock_clause:
        _lock(write, kind, everyone, periods)
        if _found(write, kind, before_us) != (everyone, periods):
            raise SerializationConflict  # someone was undeleted before the lock, or another purge was quicker
    _delete(write, "assignment", periods)
    _delete(write, kind.name, everyone)
    write.run(_KEEP_IDS, {"kind": kind.name, "ids": _ids(everyone)})
    for record in [*periods, *everyone]:
        write.record_change(enums.CHANGE_PURGED, record)
    return Erased(len(everyone), len(periods))


def _found(write: Write, kind: RecordKind[Any], before_us: int) -> tuple[list[Any], list[Assignment]]:
    """The first who were deleted, so many that their assignments are few enough, or one; and these."""
    sql = (
        f"SELECT (SELECT COUNT(*) FROM assignment AS period WHERE period.{kind.id} = one.{kind.id}), {kind.columns}"
        f" FROM {kind.name} AS one WHERE one.deleted_us < :before_us"
        f" ORDER BY one.deleted_us, one.{kind.id} LIMIT {_PEOPLE_AT_ONCE}"
    )
    rows = write.run(sql, {"before_us": before_us})
    fitting = sum(total <= _PERIODS_AT_ONCE for total in accumulate(row[0] for row in rows))
    everyone = [kind.record._make(row[1:]) for row in rows[: max(1, fitting)]]
    sql = (
        f"SELECT {assignments.COLUMNS} FROM assignment AS period"
        f" WHERE period.{kind.id} IN (SELECT atom FROM json_each(:ids)) ORDER BY period.assignment_id"
    )
    return everyone, [Assignment._make(row) for row in write.run(sql, {"ids": _ids(everyone)})]


def _lock(write: Write, kind: RecordKind[Any], everyone: list[Any], periods: list[Assignment]) -> None:
    if kind.name != PATIENT.name:
        records.lock(write, PATIENT, {period.patient_id for period in periods})
    records.lock(write, kind, [record[0] for record in everyone])


def _delete(write: Write, table: str, rows: list[Any]) -> None:
    write.run(f"DELETE FROM {table} WHERE {table}_id IN (SELECT atom FROM json_each(:ids))", {"ids": _ids(rows)})


def _ids(rows: list[Any]) -> str:
    return json.dumps([row[0] for row in rows])
