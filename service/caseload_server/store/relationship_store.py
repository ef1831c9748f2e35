"""The store of record. Each method is one verb of the domain, in one transaction."""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from caseload_server.domain import requests, results
from caseload_server.domain.limits import MAX_PAGE_BYTES
from caseload_server.domain.records import Assignment, P, Patient, Q, R, Therapist
from caseload_server.domain.requests import CallContext, CaseloadQuery, Fields, PageRequest, RecordQuery
from caseload_server.domain.results import (
    AssignResult,
    BatchAssignResult,
    BatchCreateResult,
    CheckResult,
    DeleteResult,
    MergeResult,
    Page,
    RecordResult,
    TransferResult,
    UnassignResult,
    UnmergeResult,
    UpdateResult,
)
from caseload_server.store import (
    assignment_lists,
    assignments,
    batches,
    change_log,
    checks,
    corrections,
    endings,
    expiry,
    known_at,
    lists,
    merges,
    records,
    transfers,
    versions,
)
from caseload_server.store.backends.protocol import Database, Gauges, Query, Transaction
from caseload_server.store.key_catch_up import KeyCatchUp
from caseload_server.store.outcome_expiry import OutcomeExpiry
from caseload_server.store.pages import build_page
from caseload_server.store.purges import Purger
from caseload_server.store.records import PATIENT, THERAPIST, RecordKind
from caseload_server.store.store_identity import StoreKeys
from caseload_server.store.write_transaction import Write, WriteResult, Writes

_SELECT_HEAD = "SELECT head_revision FROM store"
_SELECT_IDENTITY = """
SELECT store_id, secret, head_revision, (SELECT committed_us FROM change_set WHERE revision = head_revision)
FROM store"""


class RelationshipStore:
    """Therapists, patients and their assignments, with the rules between them.

    Every method may raise StoreBusy or StoreUnavailable; a write also StoreFull, OutcomeUnknown, ShuttingDown and
    RequestIdReused. A refused write changes nothing.
    """

    def __init__(
        self, database: Database, clock: Callable[[], int], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: database, migrated; clock, returns microseconds since 1970 (UTC); monotonic, never steps; seconds."""
        self._database = database
        self._clock = clock
        [(store_id, secret, head, head_us)] = database.read(_SELECT_IDENTITY)
        self.keys: Final = StoreKeys(store_id, secret)
        self._writes = Writes(database, clock, self.keys, OutcomeExpiry(head, head_us, monotonic))
        self.purger: Final = Purger(database, self._writes, clock)
        self.key_catch_up: Final = KeyCatchUp(database)

    def get(self, kind: RecordKind[P], record_id: str) -> P:
        """Returns one record, also a soft-deleted one. Raises the kind's NOT_FOUND."""
        rows = self._database.read(kind.select, {"id": record_id})
        if not rows:
            raise records.not_found(kind, [record_id])
        return kind.record._make(rows[0])

    def batch_get(self, kind: RecordKind[P], ids: list[str]) -> list[P]:
        """Returns records in the order of the ids. Raises the kind's NOT_FOUND, which names the missing ones."""
        return records.in_order(kind, ids, self._database.read(kind.select_batch, {"ids": json.dumps(ids)}))

    def list_records(self, kind: RecordKind[P], query: RecordQuery, page: PageRequest) -> Page[P]:
        """Returns one page, in the order of the query. Raises InvalidField if name_prefix holds no word."""
        with self._database.snapshot() as transaction:
            listed = lists.RecordList(transaction, kind, query, self._database.dialect)
            total = listed.total() if query.with_total else None
            head = self._read_head(transaction)
            width = len(kind.record._fields) if query.order.column else None
            return build_page(listed.rows(page), page, kind.record._make, head, width)._replace(total_size=total)

    def list_therapist_patients(self, query: CaseloadQuery, page: PageRequest) -> Page[tuple[Assignment, Patient]]:
        """Returns one page of a therapist's assignments with their patients. Raises TherapistNotFound."""
        return self._list_assigned(THERAPIST, PATIENT, query, page)

    def list_patient_therapists(self, query: CaseloadQuery, page: PageRequest) -> Page[tuple[Assignment, Therapist]]:
        """Returns one page of a patient's assignments with their therapists. Raises PatientNotFound."""
        return self._list_assigned(PATIENT, THERAPIST, query, page)

    def _list_assigned(
        self, kind: RecordKind[P], other: RecordKind[Q], query: CaseloadQuery, page: PageRequest
    ) -> Page[tuple[Assignment, Q]]:
        width = len(Assignment._fields)
        with self._database.snapshot() as transaction:
            if kind.name == PATIENT.name and query.as_of_us is not None:
                query = query._replace(same_person=merges.same_person(transaction, query.parent_id))
            if not transaction.run(kind.select, {"id": query.parent_id}):
                raise records.not_found(kind, [query.parent_id])
            dialect, now_us = self._database.dialect, self._clock()
            count = assignment_lists.count_caseload(kind, query, dialect, now_us) if query.with_total else None
            total = _total(transaction, count)
            select = assignment_lists.select_caseload(kind, other, query, dialect, now_us)
            head = self._read_head(transaction)
            return build_page(
                transaction.rows(select.of_page(page.after, page.size + 1, page.after_key)),
                page,
                lambda row: (Assignment._make(row[:width]), other.record._make(row[width:])),
                head,
                width + len(other.record._fields) if query.order.column else None,
            )._replace(total_size=total)

    def create(self, kind: RecordKind[P], record_id: str, fields: Fields, call: CallContext) -> RecordResult[P]:
        """Creates a record. An empty id generates one. Raises IdTaken, IdentifierTaken, InvalidField."""
        return self._change_record(kind, call, lambda write: ([records.create(write, kind, record_id, fields)], 1))

    def batch_create(
        self, kind: RecordKind[P], batch: list[requests.NewRecord], call: CallContext
    ) -> BatchCreateResult[P]:
        """Creates many records, all or nothing. Raises the errors of batches.create."""

        def load(write: Write, ids: list[str]) -> list[P]:
            return records.read_all(write, kind, ids)

        result = self._writes.run(call, lambda write: (batches.create(write, kind, batch), 1), load, alone=True)
        return BatchCreateResult(result.records, result.revision)

    def update(self, kind: RecordKind[P], request: requests.Update, call: CallContext) -> UpdateResult[P]:
        """Updates fields of a record. Raises the errors of endings.update."""

        def work(write: Write) -> tuple[list[P], int]:
            return endings.update(write, kind, request)

        result = self._writes.run(call, work, _loader(kind), request.record_id, alone=request.end_reason is not None)
        return UpdateResult(result.records[0], result.effect, result.revision)

    def delete(self, kind: RecordKind[P], request: requests.Delete, call: CallContext) -> DeleteResult[P]:
        """Soft-deletes a record. `force` ends its active assignments first. Raises the errors of endings.delete."""

        def work(write: Write) -> tuple[list[P], int]:
            return endings.delete(write, kind, request)

        result = self._writes.run(call, work, _loader(kind), request.record_id, alone=request.force)
        return DeleteResult(result.records[0] if result.records else None, result.effect, result.revision)

    def undelete(
        self, kind: RecordKind[P], record_id: str, call: CallContext, *, release_identifiers: bool = False
    ) -> RecordResult[P]:
        """Reverts a soft delete. Raises the kind's NOT_FOUND, PatientMerged, IdentifierTaken.

        Args: release_identifiers, whether to drop identifiers that others have by now, instead of IdentifierTaken.
        """

        def work(write: Write) -> tuple[list[P], int]:
            record = records.require(write, kind, record_id)
            restored = records.undelete(write, kind, record, release_identifiers=release_identifiers)
            return [restored], restored is not record

        return self._change_record(kind, call, work, record_id)

    def assign(self, request: requests.Assign, call: CallContext) -> AssignResult:
        """Begins an assignment, or records a finished one. Raises the errors of batches.assign_one."""
        pair = request.therapist_id, request.patient_id
        result = self._change_assignments(call, lambda write: batches.assign_one(write, request), *pair)
        return AssignResult(result.records[0], bool(result.effect), result.revision, *result.records[1:])

    def batch_assign(self, batch: list[requests.Assign], call: CallContext) -> BatchAssignResult:
        """Begins or records many assignments, all or nothing. Raises the errors of batches.assign."""
        result = self._change_assignments(call, lambda write: batches.assign(write, batch), alone=True)
        created = [bool(result.effect >> index & 1) for index in range(len(result.records))]
        return BatchAssignResult(result.records, created, result.revision)

    def unassign(self, request: requests.Unassign, call: CallContext) -> UnassignResult:
        """Ends an assignment. Raises the errors of assignments.unassign."""
        pair = request.therapist_id, request.patient_id
        result = self._change_assignments(call, lambda write: assignments.unassign(write, request), *pair)
        return UnassignResult(result.records[0] if result.records else None, bool(result.effect), result.revision)

    def end_expired(self) -> int | None:
        """Ends the assignments whose expire_time has passed. Returns the next expire_time, as expiry.sweep."""

        def work(write: Write) -> tuple[list[Assignment], int]:
            return [], expiry.sweep_batch(write)

        run = partial(self._change_assignments, expiry.EXPIRY_CALL, work, alone=True)
        return expiry.sweep(self._database, self._clock, lambda: run().effect)

    def transfer(self, request: requests.Transfer, call: CallContext) -> TransferResult:
        """Moves a caseload to another therapist. Raises the errors of transfers.transfer."""
        result = self._change_assignments(call, lambda write: transfers.transfer(write, request), alone=True)
        return TransferResult(result.records[: result.effect], result.records[result.effect :], result.revision)

    def merge(self, request: requests.Merge, call: CallContext) -> MergeResult:
        """Merges two records of one person. Raises the errors of merges.merge."""
        result = self._writes.run(call, lambda write: merges.merge(write, request), merges.read_all, alone=True)
        source, target, *periods = result.records
        half = len(periods) // 2
        return MergeResult(source, target, periods[:half], periods[half:], bool(result.effect), result.revision)

    def unmerge(self, source_id: str, call: CallContext) -> UnmergeResult:
        """Reverts a merge. Raises the errors of merges.unmerge."""
        result = self._writes.run(call, lambda write: merges.unmerge(write, source_id), _loader(PATIENT), alone=True)
        source, *targets = result.records
        return UnmergeResult(source, targets[0] if targets else None, result.revision)

    def correct(
        self, assignment_id: str, etag: str, fields: requests.Correction, call: CallContext
    ) -> RecordResult[Assignment]:
        """Corrects the focus or the period of an assignment. Raises the errors of corrections.correct."""
        result = self._change_assignments(call, lambda write: corrections.correct(write, assignment_id, etag, fields))
        return RecordResult(result.records[0], result.revision)

    def get_assignment(self, assignment_id: str) -> Assignment:
        """Returns one assignment, active or ended. Raises AssignmentNotFound."""
        rows = self._database.read(assignments.SELECT_BY_ID, {"id": assignment_id})
        if not rows:
            raise assignments.not_found(assignment_id)
        return Assignment._make(rows[0])

    def list_assignments(self, query: requests.AssignmentQuery, page: PageRequest) -> Page[Assignment]:
        """Returns one page, ordered by assignment_id. Raises VersionsNotKept."""
        with self._database.snapshot() as transaction:
            query = _of_same_person(transaction, query)
            dialect, now_us = self._database.dialect, self._clock()
            count = assignment_lists.count_assignments(query, dialect, now_us) if query.with_total else None
            total = _total(transaction, count)
            select = assignment_lists.select_assignments(query, dialect, now_us).of_page(page.after, page.size + 1)
            head = self._read_head(transaction)
            return build_page(transaction.rows(select), page, Assignment._make, head)._replace(total_size=total)

    def list_versions(self, history: versions.History[R], record_id: str, page: PageRequest) -> results.VersionPage[R]:
        """Returns one page of what a record was, newest first. Raises the kind's NOT_FOUND."""
        with self._database.snapshot() as transaction:
            return versions.read_page(transaction, self.keys, history, record_id, page)

    def check_assignments(
        self, pairs: list[tuple[str, str]], at_us: int, known_at_us: int | None = None
    ) -> tuple[list[CheckResult], str]:
        """Returns the assignment in force for each pair, and the head revision. Raises VersionsNotKept.

        Args: pairs, (therapist_id, patient_id) each; at_us, in microseconds since 1970 (UTC); known_at_us, as in
        AssignmentQuery.
        """
        if known_at_us is None:
            rows = self._database.read(checks.SELECT, {"pairs": json.dumps(pairs), "at_us": at_us})
        else:
            with self._database.snapshot() as transaction:
                rows = known_at.check(transaction, pairs, at_us, known_at_us)
        return checks.results(rows, pairs), self.keys.revision(rows[0][0])

    def log_head(self) -> results.LogHead:
        """Returns the newest revision with its hash, to be kept outside of the database."""
        with self._database.snapshot() as transaction:
            return change_log.read_head(transaction)

    def head_revision(self) -> int:
        """Returns the number of the newest revision."""
        return int(self._database.read(_SELECT_HEAD)[0][0])

    def list_changes(
        self, query: requests.ChangeQuery, after: str, max_sets: int, max_bytes: int = MAX_PAGE_BYTES
    ) -> results.ChangePage:
        """Returns the change sets after a revision, oldest first.

        Args: after, empty for the oldest kept; max_sets, max_bytes, the size of the page. Raises RevisionForeign,
        RevisionPruned.
        """
        after_number = self.keys.number(after) if after else None
        with self._database.snapshot() as transaction:
            return change_log.read_page(transaction, self.keys, query, after_number, (max_sets, max_bytes))

    def check(self) -> None:
        """Raises StoreBusy, StoreUnavailable or ShuttingDown if the store cannot serve calls."""
        self._database.check()

    def gauges(self) -> Gauges:
        """Returns the gauges of the database."""
        return self._database.gauges()

    def wait_for_commit(self) -> None:
        """Returns when another process may have committed, after half a second at most. Call it from one thread."""
        self._database.wait_for_commit()

    def stop_waiting(self) -> None:
        """Ends wait_for_commit, now and in future. Any thread may call it."""
        self._database.stop_waiting()

    def close(self) -> None:
        """Finishes the writes in progress and closes the database."""
        self._database.close()

    def _read_head(self, transaction: Transaction) -> str:
        return self.keys.revision(transaction.run(_SELECT_HEAD)[0][0])

    def _change_record(
        self, kind: RecordKind[P], call: CallContext, work: Callable[[Write], tuple[list[P], int]], *records: str
    ) -> RecordResult[P]:
        result = self._writes.run(call, work, _loader(kind), *records)
        return RecordResult(result.records[0], result.revision)

    def _change_assignments(
        self,
        call: CallContext,
        work: Callable[[Write], tuple[list[Assignment], int]],
        *records: str,
        alone: bool = False,
    ) -> WriteResult[Assignment]:
        return self._writes.run(call, work, assignments.require_all, *records, alone=alone)


def _loader(kind: RecordKind[P]) -> Callable[[Write, list[str]], list[P]]:
    return lambda write, ids: [records.read(write, kind, record_id) for record_id in ids]


def _total(transaction: Transaction, count: Query | None) -> int | None:
    if count is None:
        return None
    [(total,)] = transaction.rows(count)
    return int(total)


def _of_same_person(transaction: Transaction, query: requests.AssignmentQuery) -> requests.AssignmentQuery:
    """Returns the query for all records of its patient. Raises VersionsNotKept."""
    known_at_us = query.known_at_us
    if known_at_us is not None:
        known_at.require_kept(transaction, known_at_us)
    if not query.patient_id or query.as_of_us is None:
        return query
    if known_at_us is None:
        return query._replace(same_person=merges.same_person(transaction, query.patient_id))
    persons = known_at.same_person(transaction, [query.patient_id], known_at_us)
    return query._replace(same_person=persons[query.patient_id])
