"""The store of record: one method is one transaction is one verb of the domain."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, NamedTuple, TypeVar

from uuid_utils import uuid7

from caseload_server.domain import errors, requests, results
from caseload_server.domain.limits import MAX_PAGE_BYTES
from caseload_server.domain.records import Assignment, P, Patient, Q, Therapist
from caseload_server.domain.requests import CallContext, CaseloadQuery, Fields, PageRequest, RecordQuery
from caseload_server.domain.results import (
    AssignResult,
    CheckResult,
    DeleteResult,
    Page,
    RecordResult,
    TransferResult,
    UnassignResult,
)
from caseload_server.store import assignments, change_log, corrections, lists, purges, records, transfers
from caseload_server.store.backends.protocol import Database, Gauges, Row, Transaction
from caseload_server.store.idempotency import SERVER_GENERATED_PREFIX
from caseload_server.store.records import PATIENT, THERAPIST, RecordKind
from caseload_server.store.store_keys import StoreKeys
from caseload_server.store.write import Write

_FLAT_ROW_BYTES: Final = 256
_HEAD = "SELECT head_revision FROM store"

T = TypeVar("T")


class _Answer(NamedTuple, Generic[T]):
    """What a write answers, whatever its verb; effect as in StoredOutcome."""

    records: list[T]
    effect: int
    revision: str


class _Validated(Exception):
    """Carries the answer of a write that is to be rolled back."""

    def __init__(self, answer: _Answer[Any]) -> None:
        self.answer = answer


class RelationshipStore:
    """Therapists, patients and their assignments, with the rules that hold between them.

    Any method may raise StoreBusy or StoreUnavailable; a write also StoreFull, OutcomeUnknown, ShuttingDown and
    RequestIdReused. A refused write leaves nothing behind.
    """

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        """Args: database, migrated; clock, the time in microseconds since 1970 (UTC)."""
        self._database = database
        self._clock = clock
        [(store_id, secret)] = database.read("SELECT store_id, secret FROM store")
        self.keys: Final = StoreKeys(store_id, secret)

    def get(self, kind: RecordKind[P], record_id: str) -> P:
        """One record, also when deleted. Raises the kind's NOT_FOUND."""
        rows = self._database.read(kind.select, {"id": record_id})
        if not rows:
            raise records.not_found(kind, [record_id])
        return kind.record._make(rows[0])

    def batch_get(self, kind: RecordKind[P], ids: list[str]) -> list[P]:
        """Records in the order of the ids. Raises the kind's NOT_FOUND, naming the missing."""
        rows = self._database.read(kind.select_batch, {"ids": json.dumps(ids)})
        found = {row[0]: kind.record._make(row) for row in rows}
        if missing := [one for one in dict.fromkeys(ids) if one not in found]:
            raise records.not_found(kind, missing)
        return [found[one] for one in ids]

    def list_people(self, kind: RecordKind[P], query: RecordQuery, page: PageRequest) -> Page[P]:
        """One page, ordered by id."""
        sql, parameters = lists.of_people(kind, query)
        parameters |= {"after": page.after, "limit": page.size + 1}
        with self._database.reading() as transaction:
            return _page(transaction.fetch_page(sql, parameters), page, kind.record._make, self._head(transaction))

    def list_therapist_patients(self, query: CaseloadQuery, page: PageRequest) -> Page[tuple[Assignment, Patient]]:
        """One page of a therapist's assignments, each with its patient, by assignment_id. Raises TherapistNotFound."""
        return self._list_assigned(THERAPIST, PATIENT, query, page)

    def list_patient_therapists(self, query: CaseloadQuery, page: PageRequest) -> Page[tuple[Assignment, Therapist]]:
        """One page of a patient's assignments, each with its therapist, by assignment_id. Raises PatientNotFound."""
        return self._list_assigned(PATIENT, THERAPIST, query, page)

    def _list_assigned(
        self, kind: RecordKind[P], other: RecordKind[Q], query: CaseloadQuery, page: PageRequest
    ) -> Page[tuple[Assignment, Q]]:
        sql, parameters = assignments.listing_with(kind, other, query)
        parameters |= {"after": page.after, "limit": page.size + 1}
        width = len(Assignment._fields)
        with self._database.reading() as transaction:
            if not transaction.run(kind.select, {"id": query.parent_id}):
                raise records.not_found(kind, [query.parent_id])
            return _page(
                transaction.fetch_page(sql, parameters),
                page,
                lambda row: (Assignment._make(row[:width]), other.record._make(row[width:])),
                self._head(transaction),
            )

    def create(self, kind: RecordKind[P], record_id: str, fields: Fields, call: CallContext) -> RecordResult[P]:
        """Adds a record; an empty id generates one. Raises IdTaken, IdentifierTaken, InvalidField."""
        return self._change_record(kind, call, lambda write: ([records.create(write, kind, record_id, fields)], 1))

    def update(
        self, kind: RecordKind[P], record_id: str, etag: str, fields: Fields, call: CallContext
    ) -> RecordResult[P]:
        """Sets fields; an etag that is not empty must be the record's.

        Raises the kind's NOT_FOUND and DELETED, EtagMismatch, HasActiveAssignments, IdentifierTaken, InvalidField.
        """

        def work(write: Write) -> tuple[list[P], int]:
            record = records.require(write, kind, record_id)
            changed = records.update(write, kind, record, etag, fields)
            return [changed], changed is not record

        return self._change_record(kind, call, work)

    def delete(self, kind: RecordKind[P], order: requests.Delete, call: CallContext) -> DeleteResult[P]:
        """Soft-deletes; `force` ends active assignments first.

        Raises the kind's NOT_FOUND, EtagMismatch, HasActiveAssignments, TooManyAssignments.
        """

        def work(write: Write) -> tuple[list[P], int]:
            locked = assignments.lock_caseload(write, kind, order.record_id) if order.force else set()
            record = records.find(write, kind, order.record_id)
            if record is None:
                if order.allow_missing:
                    return [], 0
                raise records.not_found(kind, [order.record_id])
            if record.deleted_us is not None:
                return [record], 0
            return self._delete(write, kind, record, order, locked)

        answer = self._write(call, work, _loader(kind))
        return DeleteResult(answer.records[0] if answer.records else None, answer.effect, answer.revision)

    def _delete(
        self, write: Write, kind: RecordKind[P], record: P, order: requests.Delete, locked: set[str]
    ) -> tuple[list[P], int]:
        if order.etag and order.etag != record.etag:
            raise errors.EtagMismatch
        count = records.active_count(kind, record)
        if count and not order.force:
            raise errors.HasActiveAssignments(count=count)
        ended = assignments.end_all(write, kind, record, locked)
        return [records.delete(write, kind, records.require(write, kind, order.record_id))], ended

    def undelete(self, kind: RecordKind[P], record_id: str, call: CallContext) -> RecordResult[P]:
        """Reverts a soft delete. Raises the kind's NOT_FOUND, IdentifierTaken."""

        def work(write: Write) -> tuple[list[P], int]:
            record = records.require(write, kind, record_id)
            restored = records.undelete(write, kind, record)
            return [restored], restored is not record

        return self._change_record(kind, call, work)

    def assign(self, order: requests.Assign, call: CallContext) -> AssignResult:
        """Begins an assignment. Raises what assignments.assign does."""
        answer = self._change_assignments(call, lambda write: assignments.assign(write, order))
        return AssignResult(answer.records[0], bool(answer.effect), answer.revision)

    def unassign(self, order: requests.Unassign, call: CallContext) -> UnassignResult:
        """Ends an assignment. Raises what assignments.unassign does."""
        answer = self._change_assignments(call, lambda write: assignments.unassign(write, order))
        return UnassignResult(answer.records[0] if answer.records else None, bool(answer.effect), answer.revision)

    def transfer(self, order: requests.Transfer, call: CallContext) -> TransferResult:
        """Moves a caseload to another therapist. Raises what transfers.transfer does."""
        answer = self._change_assignments(call, lambda write: transfers.transfer(write, order))
        return TransferResult(answer.records[: answer.effect], answer.records[answer.effect :], answer.revision)

    def correct(
        self, assignment_id: str, etag: str, fields: requests.Correction, call: CallContext
    ) -> RecordResult[Assignment]:
        """Corrects the focus or the period of an assignment. Raises what corrections.correct does."""
        answer = self._change_assignments(call, lambda write: corrections.correct(write, assignment_id, etag, fields))
        return RecordResult(answer.records[0], answer.revision)

    def get_assignment(self, assignment_id: str) -> Assignment:
        """One period, active or ended. Raises AssignmentNotFound."""
        rows = self._database.read(assignments.BY_ID, {"id": assignment_id})
        if not rows:
            raise assignments.not_found(assignment_id)
        return Assignment._make(rows[0])

    def list_assignments(self, query: requests.AssignmentQuery, page: PageRequest) -> Page[Assignment]:
        """One page, ordered by assignment_id."""
        sql, parameters = assignments.listing(query)
        parameters |= {"after": page.after, "limit": page.size + 1}
        with self._database.reading() as transaction:
            rows = transaction.fetch_page(sql, parameters)
            return _page(rows, page, Assignment._make, self._head(transaction))

    def check_assignments(self, pairs: list[tuple[str, str]], at_us: int) -> tuple[list[CheckResult], str]:
        """For each (therapist_id, patient_id) the assignment in force at a time, and the store's revision."""
        rows = self._database.read(assignments.CHECK, {"pairs": json.dumps(pairs), "at_us": at_us})
        checks = [CheckResult(*row[1:]) for row in sorted(rows, key=lambda row: row[1])]
        return checks, self.keys.revision(rows[0][0])

    def head(self) -> int:
        """The number of the newest revision."""
        head: int = self._database.read(_HEAD)[0][0]
        return head

    def list_changes(
        self, query: requests.ChangeQuery, after: str, size: int, size_bytes: int = MAX_PAGE_BYTES
    ) -> results.ChangePage:
        """The change sets after a revision, oldest first; an empty revision is the oldest kept.

        Raises RevisionForeign, RevisionPruned.
        """
        after_number = self.keys.number(after) if after else None
        with self._database.reading() as transaction:
            return change_log.page(transaction, self.keys, query, after_number, (size, size_bytes))

    def purge_changes(self, before_us: int, seen: Callable[[int], None] = lambda _: None) -> int:
        """Erases the log up to the last change before a time, for good, and tells of each bit: how many change sets."""
        [(last,)] = self._database.read(change_log.LAST_BEFORE, {"before_us": before_us})
        count = 0
        while gone := self._database.write(lambda transaction: change_log.purge(transaction, last)):
            count += gone
            seen(gone)
        return count

    def purge_due(self, kind: RecordKind[Any], before_us: int) -> int:
        """How many were deleted before a time."""
        count: int = self._database.read(purges.due(kind), {"before_us": before_us})[0][0]
        return count

    def purge_people(self, kind: RecordKind[Any], before_us: int) -> Iterator[purges.Erased]:
        """Erases those who were deleted before a time, with their assignments, for good: what each commit erased."""
        erased = purges.Erased(0, 0)

        def work(write: Write) -> tuple[list[Assignment], int]:
            nonlocal erased
            erased = purges.erase(write, kind, before_us)
            return [], sum(erased)

        while self._change_assignments(purges.CALL, work).effect:
            yield erased

    def check(self) -> None:
        """Raises StoreBusy, StoreUnavailable, ShuttingDown where calls would not be answered."""
        self._database.check()

    def gauges(self) -> Gauges:
        """What can be looked at, from any thread."""
        return self._database.gauges()

    def wait_for_commit(self) -> None:
        """Returns when another process may have written, after half a second at most. For one thread."""
        self._database.wait_for_commit()

    def close(self) -> None:
        """Finishes the writes under way and closes the database."""
        self._database.close()

    def _head(self, transaction: Transaction) -> str:
        return self.keys.revision(transaction.run(_HEAD)[0][0])

    def _change_record(
        self, kind: RecordKind[P], call: CallContext, work: Callable[[Write], tuple[list[P], int]]
    ) -> RecordResult[P]:
        answer = self._write(call, work, _loader(kind))
        return RecordResult(answer.records[0], answer.revision)

    def _change_assignments(
        self, call: CallContext, work: Callable[[Write], tuple[list[Assignment], int]]
    ) -> "_Answer[Assignment]":
        return self._write(call, work, assignments.require)

    def _write(
        self, call: CallContext, work: Callable[[Write], tuple[list[T], int]], load: Callable[[Write, str], T]
    ) -> "_Answer[T]":
        """Runs one write: a known request_id gets its first answer, and a write that only validates is rolled back.

        Args: work, returns the records to answer and the effect, as in StoredOutcome; load, one record by its id.
        """
        if self._database.commit_may_be_ambiguous and not call.request_id and not call.validate_only:
            call = call._replace(request_id=f"{SERVER_GENERATED_PREFIX}{uuid7()}")

        def transact(transaction: Transaction) -> _Answer[T]:
            write = Write(transaction, call, self._clock(), self.keys, self._database.lock_clause)
            if replay := write.find_replay():
                loaded = [load(write, record_id) for record_id in replay.record_ids]
                return _Answer(loaded, replay.effect, "" if call.validate_only else self.keys.revision(replay.revision))
            changed, effect = work(write)
            answered, revision = write.finish(changed, int(effect))
            answer = _Answer(answered, int(effect), revision)
            if call.validate_only:
                raise _Validated(answer)
            return answer

        try:
            return self._database.write(transact)
        except _Validated as validated:
            return validated.answer


def _loader(kind: RecordKind[P]) -> Callable[[Write, str], P]:
    return lambda write, record_id: records.require(write, kind, record_id)


def _page(rows: Iterator[Row], page: PageRequest, make: Callable[[Row], T], revision: str) -> Page[T]:
    """As many rows as the page may hold, in number and in bytes; ids are in the first column."""
    taken: list[T] = []
    size, last, more = 0, "", ""
    for row in rows:
        size += _FLAT_ROW_BYTES + sum(_bytes(value) for value in row if type(value) is str)
        if len(taken) == page.size or (taken and size > MAX_PAGE_BYTES):
            more = last
            break
        taken.append(make(row))
        last = row[0]
    return Page(taken, more, revision)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
