"""Purges of soft-deleted therapists and patients, with their assignments, and of old versions and changes.

The ids of purged records remain, and are never reused.
"""

import json
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, Final, NamedTuple

from caseload_server.domain import enums, limits
from caseload_server.domain.records import Assignment
from caseload_server.domain.requests import CallContext
from caseload_server.store import assignments, change_log, records, version_purge
from caseload_server.store.backends.protocol import Database, SerializationConflict, Transaction
from caseload_server.store.change_log import NewChangeSet
from caseload_server.store.records import PATIENT, RecordKind
from caseload_server.store.write_transaction import Write, Writes

_PURGE_CALL: Final = CallContext(actor="cli:purge", method="")
"""The actor of a purge in the change log."""
_PurgeBatch = Callable[[Transaction, int, NewChangeSet, str], int]
"""As change_log.purge_batch."""
_LOG_PURGE: Final = NewChangeSet(0, _PURGE_CALL.actor, "", _PURGE_CALL.method, "", [])
"""Records a purge of the change log or of versions, once it has a time and a change."""
_MAX_RECORDS_PER_BATCH: Final = 100
"""Therapists or patients that one transaction purges, so that writers wait briefly."""
_MAX_ASSIGNMENTS_PER_BATCH: Final = limits.MAX_ASSIGNMENTS_PER_CALL - _MAX_RECORDS_PER_BATCH
"""Assignments that one transaction purges, unless a single record has more."""
_INSERT_PURGED_IDS = "INSERT INTO purged (kind, record_id) SELECT :kind, atom FROM json_each(:ids)"
_SELECT_PURGED_ID = "SELECT 1 FROM purged WHERE kind = :kind AND record_id = :id"
_IS_PURGEABLE: Final = {
    "therapist": "record.deleted_us < :before_us",
    "patient": "record.deleted_us < :before_us AND record.merged_into_patient_id = ''",
}
"""The condition for records to purge. A merged patient is purged with the record into which it was merged."""
_COUNT_MERGED = """
SELECT COUNT(*) FROM same_person JOIN patient AS record ON record.patient_id = same_person.person_id
WHERE record.deleted_us < :before_us AND same_person.patient_id <> same_person.person_id"""
_COUNT_MERGED_ASSIGNMENTS = """
SELECT COUNT(*) FROM same_person AS merged JOIN assignment AS period ON period.patient_id = merged.patient_id
WHERE merged.person_id = record.patient_id AND merged.patient_id <> merged.person_id"""
_SELECT_MERGED = f"""
SELECT {PATIENT.columns} FROM same_person JOIN patient AS record ON record.patient_id = same_person.patient_id
WHERE same_person.person_id IN (SELECT atom FROM json_each(:ids)) AND same_person.patient_id <> same_person.person_id
ORDER BY record.patient_id"""


_Selected = tuple[list[Any], list[Assignment]]
"""Records to purge, of one kind, and their assignments."""


class NotPurgeable(Exception):
    """A record that must not be erased. The text says why and what to do. It follows the name of a setting."""


class PurgedCount(NamedTuple):
    """Number of rows that a transaction purged."""

    records: int
    assignments: int


class Purger:
    """Erases deleted records and old changes. Raises what every write of RelationshipStore may raise."""

    def __init__(self, database: Database, writes: Writes, clock: Callable[[], int]) -> None:
        """Args: writes, of the same database; clock, returns microseconds since 1970 (UTC)."""
        self._database = database
        self._writes = writes
        self._clock = clock

    def count_purgeable(self, kind: RecordKind[Any], before_us: int) -> int:
        """Returns the number of records that were deleted before a time, in microseconds since 1970 (UTC)."""
        sql = f"SELECT COUNT(*) FROM {kind.name} AS record WHERE {_IS_PURGEABLE[kind.name]}"
        if kind.name == PATIENT.name:
            sql = f"SELECT ({sql}) + ({_COUNT_MERGED})"
        return int(self._database.read(sql, {"before_us": before_us})[0][0])

    def count_deleted_after(self, kind: RecordKind[Any], time_us: int) -> int:
        """Returns the number of records that were deleted after a time, in microseconds since 1970 (UTC)."""
        sql = f"SELECT COUNT(*) FROM {kind.name} WHERE deleted_us > :time_us"
        return int(self._database.read(sql, {"time_us": time_us})[0][0])

    def purge_records(self, kind: RecordKind[Any], before_us: int) -> Iterator[PurgedCount]:
        """Erases records that were deleted before a time, with their assignments. Yields after each transaction.

        A record and all its assignments are erased in one commit, however many they are: a record that remains can be
        undeleted. Args: before_us, in microseconds since 1970 (UTC).
        """
        while any(purged := self._run(kind, lambda write: _select_batch(write, kind, before_us))):
            yield purged

    def purge_record(self, kind: RecordKind[Any], record_id: str) -> PurgedCount:
        """Erases one deleted record with its assignments, and a patient with all that were merged into it.

        Returns zeros if it was purged before. Raises the kind's NOT_FOUND, NotPurgeable.
        """
        return self._run(kind, lambda write: _select_one(write, kind, record_id))

    def purge_changes(self, before_us: int, on_batch: Callable[[int], None] = lambda _: None) -> int:
        """Erases the change log up to the last change before a time. Returns the number of change sets.

        Each transaction appends a change set that records what it erased.

        Args: before_us, in microseconds since 1970 (UTC); on_batch, is called with the number after each transaction.
        """
        times = {"before_us": before_us, "now_us": max(before_us, self._clock())}
        [(last,)] = self._database.read(change_log.LAST_REVISION_BEFORE, times)
        return self._purge_through(last, change_log.purge_batch, on_batch)

    def purge_versions(self, before_us: int, on_batch: Callable[[int], None] = lambda _: None) -> int:
        """Erases what records were, up to the last change before a time. Returns the number of versions.

        Each transaction appends a change set that records what it erased. Arguments as purge_changes.
        """
        with self._database.snapshot() as transaction:
            last = version_purge.last_revision_before(transaction, before_us, self._clock())
        return self._purge_through(last, version_purge.purge_batch, on_batch)

    def _purge_through(self, last: int, purge_batch: _PurgeBatch, on_batch: Callable[[int], None]) -> int:
        """Erases batches up to a revision, each in one transaction. Returns the number of what they erased."""
        count = 0

        def work(transaction: Transaction) -> int:
            record = _LOG_PURGE._replace(committed_us=self._clock())
            return purge_batch(transaction, last, record, self._database.lock_clause)

        while erased := self._database.write(work):
            count += erased
            on_batch(erased)
        return count

    def _run(self, kind: RecordKind[Any], select: Callable[[Write], _Selected]) -> PurgedCount:
        """Purges what a function selects, in one transaction."""
        purged = PurgedCount(0, 0)

        def work(write: Write) -> tuple[list[Assignment], int]:
            nonlocal purged
            purged = _purge(write, kind, lambda: select(write))
            return [], sum(purged)

        self._writes.run(_PURGE_CALL, work, assignments.require_all, alone=True)
        return purged


def _purge(write: Write, kind: RecordKind[Any], select: Callable[[], _Selected]) -> PurgedCount:
    """Purges the selected records and periods. Locks them, and repeats the selection, which must not differ."""
    deleted, periods = select()
    if write.lock_clause:
        _lock(write, kind, deleted, periods)
        if select() != (deleted, periods):
            raise SerializationConflict  # before the lock a record was undeleted, or another purge took it
    _delete(write, "assignment", periods)
    _delete(write, kind.name, deleted)
    write.run(_INSERT_PURGED_IDS, {"kind": kind.name, "ids": _json_ids(deleted)})
    for record in [*periods, *deleted]:
        write.record_change(enums.CHANGE_PURGED, record)
    return PurgedCount(len(deleted), len(periods))


def _select_one(write: Write, kind: RecordKind[Any], record_id: str) -> _Selected:
    """Returns a deleted record, those that were merged into it, and all their assignments."""
    rows = write.run(kind.select, {"id": record_id})
    if not rows:
        if write.run(_SELECT_PURGED_ID, {"kind": kind.name, "id": record_id}):
            return [], []
        raise records.not_found(kind, [record_id])
    record = kind.record._make(rows[0])
    _refuse_unpurgeable(record)
    deleted = _with_merged(write, kind, [record])
    return deleted, _select_periods(write, kind, deleted)


def _refuse_unpurgeable(record: Any) -> None:
    if record.deleted_us is None:
        raise NotPurgeable("is not deleted: delete it first")
    if target := getattr(record, "merged_into_patient_id", ""):
        raise NotPurgeable(f"was merged into patient {target}: purge that one, or unmerge it first")


def _select_batch(write: Write, kind: RecordKind[Any], before_us: int) -> _Selected:
    """Returns the first deleted records whose assignments fit into a batch, or one record, and these assignments.

    Patients come with all records that were merged into them.
    """
    id_column = kind.id_column
    count = f"(SELECT COUNT(*) FROM assignment AS period WHERE period.{id_column} = record.{id_column})"
    if kind.name == PATIENT.name:
        count += f" + ({_COUNT_MERGED_ASSIGNMENTS})"
    sql = (
        f"SELECT {count}, {kind.columns} FROM {kind.name} AS record WHERE {_IS_PURGEABLE[kind.name]}"
        f" ORDER BY record.deleted_us, record.{id_column} LIMIT {_MAX_RECORDS_PER_BATCH}"
    )
    rows = write.run(sql, {"before_us": before_us})
    fitting = sum(total <= _MAX_ASSIGNMENTS_PER_BATCH for total in accumulate(row[0] for row in rows))
    deleted = _with_merged(write, kind, [kind.record._make(row[1:]) for row in rows[: max(1, fitting)]])
    return deleted, _select_periods(write, kind, deleted)


def _select_periods(write: Write, kind: RecordKind[Any], deleted: list[Any]) -> list[Assignment]:
    sql = (
        f"SELECT {assignments.COLUMNS} FROM assignment AS period"
        f" WHERE period.{kind.id_column} IN (SELECT atom FROM json_each(:ids)) ORDER BY period.assignment_id"
    )
    return [Assignment._make(row) for row in write.run(sql, {"ids": _json_ids(deleted)})]


def _with_merged(write: Write, kind: RecordKind[Any], deleted: list[Any]) -> list[Any]:
    """Returns the records, and after them those that were merged into them."""
    if kind.name != PATIENT.name:
        return deleted
    return [*deleted, *(kind.record._make(row) for row in write.run(_SELECT_MERGED, {"ids": _json_ids(deleted)}))]


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
