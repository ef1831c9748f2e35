"""Writes of the store: their changes, and what they add to the log at the end of their transaction."""

import secrets
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

from uuid_utils import uuid7

from caseload_server.domain.limits import MAX_CHANGES_PER_SET
from caseload_server.domain.requests import CallContext
from caseload_server.domain.results import LogHead
from caseload_server.store import change_log, idempotency
from caseload_server.store.backends.protocol import Database, Sharing, Transaction, Value
from caseload_server.store.change_log import NewChangeSet
from caseload_server.store.idempotency import SERVER_GENERATED_PREFIX, NewOutcome, StoredOutcome
from caseload_server.store.outcome_expiry import OutcomeExpiry
from caseload_server.store.store_identity import StoreKeys
from caseload_server.store.version_images import Record, Version, version_of

T = TypeVar("T")


class FinishedWrite(NamedTuple, Generic[T]):
    """A write whose records are written. Its revision, change sets and outcome follow from `Writes`."""

    records: list[T]
    """The records to answer."""
    effect: int
    """As StoredOutcome.effect."""
    change_sets: Sequence[NewChangeSet] = ()
    outcome: NewOutcome | None = None
    """None if the call has no request_id."""
    replayed_revision: int | None = None
    """The revision of the first call, where this one repeats it."""


class WriteResult(NamedTuple, Generic[T]):
    """The result of a write of any verb."""

    records: list[T]
    effect: int
    """As StoredOutcome.effect."""
    revision: str
    """Empty where the call only validates, and the head revision where nothing changed."""


class Write:
    """A write in progress: its transaction, its caller, its time, and the changes so far."""

    def __init__(
        self, transaction: Transaction, call: CallContext, clock: Callable[[], int], keys: StoreKeys, lock_clause: str
    ) -> None:
        """Args: clock, returns microseconds since 1970 (UTC); lock_clause, as Database.lock_clause."""
        self.run = transaction.run
        self.lock_clause = lock_clause
        self.call = call
        self._clock = clock
        self.now_us = clock()
        """In microseconds since 1970 (UTC)."""
        self._fingerprint = keys.fingerprint(call) if call.request_id else b""
        self._changes: list[tuple[tuple[Value, ...], Version | None]] = []
        """Each change, as in NewChangeSet, and the version that it keeps, if any."""
        self._changed: set[tuple[type[Record], str]] = set()
        """The type and id of each changed record."""
        self._generated: set[str] = set()
        self._earlier: list[Write] = []

    def read_clock(self) -> None:
        """Takes the time again, after a lock that may have had to wait, unless the write has changed something.

        So the times of a record's versions have the order of their revisions.
        """
        if self.lock_clause and not self._changes and not self._earlier:
            self.now_us = self._clock()

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

    def record_change(self, kind: int, record: Record, *fields: str, before: Record | None = None) -> None:
        """Adds a change to the change set, and keeps a version of a record that the change set did not change before.

        Args: kind, a CHANGE_ enum; fields, the names of the changed fields; before, the row before the change, or None
        for a record that is created or purged.
        """
        key = type(record), record[0]
        version = version_of(before) if before and key not in self._changed else None
        self._changed.add(key)
        ids = (getattr(record, name, None) for name in ("therapist_id", "patient_id", "assignment_id"))
        self._changes.append(((kind, ",".join(fields), *ids, None, version and version.hash), version))

    def by_server(self, call: CallContext) -> "Write":
        """Returns a write for something that the server does first, in the same transaction.

        It has a change set of its own, before that of this write.
        """
        earlier = copy(self)
        earlier.call, earlier._changes, earlier._changed, earlier._earlier = call, [], set(), []
        self._earlier.append(earlier)
        return earlier

    def find_replay(self, expiry: OutcomeExpiry) -> StoredOutcome | None:
        """Returns the outcome of an earlier write with this request_id, if any. Raises RequestIdReused."""
        if not self.call.request_id:
            return None
        expired = expiry.expired(self.now_us)
        return idempotency.find_replay(self.run, self.call, self._fingerprint, self.now_us, expired)

    def finish(self, answered: list[Any], effect: int) -> FinishedWrite[Any]:
        """Returns the finished write. Args: answered, the records to answer; effect, as StoredOutcome.effect."""
        if self.call.validate_only:
            return FinishedWrite([self._without_generated(record) for record in answered], int(effect))
        outcome = None
        if self.call.request_id:
            record_ids = " ".join(record[0] for record in answered)
            outcome = NewOutcome(self.call, self._fingerprint, record_ids, int(effect), self.now_us)
        return FinishedWrite(answered, int(effect), self._change_sets(), outcome)

    def _change_sets(self) -> list[NewChangeSet]:
        """Returns those of `by_server`, and one of this write, or several if a purge made too many changes for one."""
        call = self.call
        request_id = "" if call.request_id.startswith(SERVER_GENERATED_PREFIX) else call.request_id
        earlier = [change_set for write in self._earlier for change_set in write._change_sets()]
        parts = [
            self._changes[first : first + MAX_CHANGES_PER_SET]
            for first in range(0, len(self._changes), MAX_CHANGES_PER_SET)
        ]
        return earlier + [
            NewChangeSet(
                self.now_us,
                call.actor,
                call.on_behalf_of,
                call.method,
                request_id,
                [change for change, _ in part],
                [version for _, version in part if version],
            )
            for part in parts
        ]

    def _without_generated(self, record: Record) -> Record:
        """Clears ids and etags that were generated for a write that is rolled back: they identify nothing."""
        blank: dict[str, Any] = {
            name: "" for name in ("etag", record._fields[0]) if getattr(record, name) in self._generated
        }
        return record._replace(**blank)


class _ValidateOnlyRollback(Exception):
    """Rolls back what a validate_only call wrote, and carries its result."""

    def __init__(self, result: WriteResult[Any]) -> None:
        self.result = result


class Writes:
    """Runs the writes of a store."""

    def __init__(self, database: Database, clock: Callable[[], int], keys: StoreKeys, expiry: OutcomeExpiry) -> None:
        """Args: clock, returns microseconds since 1970 (UTC); expiry, of outcomes."""
        self._database = database
        self._clock = clock
        self._keys = keys
        self._expiry = expiry
        self._last_head: LogHead | None = None
        """The head after the last transaction of this process, which another process may have moved since."""
        self._is_only_writer = False
        """Whether no other process had moved the head when it was last read."""

    def run(
        self,
        call: CallContext,
        work: Callable[[Write], tuple[list[T], int]],
        load: Callable[[Write, list[str]], list[T]],
        *records: str,
        alone: bool = False,
    ) -> WriteResult[T]:
        """Runs one write. A repeated request_id gets its first answer. A validate_only call is rolled back.

        Args: work, returns the records to answer and the effect, as in StoredOutcome; load, returns the records of an
        outcome by their ids; records, alone, as Sharing.
        """
        transact = self._transaction(call, work, load)
        key = (call.actor, call.request_id) if call.request_id else None
        sharing = Sharing(key, frozenset(records), alone)
        try:
            result = self._database.write_with_tail(transact, self._append_to_log, sharing)
        except _ValidateOnlyRollback as rollback:
            return rollback.result
        self._expiry.record(self._keys.number(result.revision))
        return result

    def _transaction(
        self,
        call: CallContext,
        work: Callable[[Write], tuple[list[T], int]],
        load: Callable[[Write, list[str]], list[T]],
    ) -> Callable[[Transaction], FinishedWrite[T]]:
        """Returns the function that runs the write in a transaction. It may be called again, after a failed commit."""
        may_be_repeated = bool(call.request_id)
        if self._database.commit_may_be_ambiguous and not call.request_id and not call.validate_only:
            call = call._replace(request_id=f"{SERVER_GENERATED_PREFIX}{uuid7()}")

        def transact(transaction: Transaction) -> FinishedWrite[T]:
            nonlocal may_be_repeated
            write = Write(transaction, call, self._clock, self._keys, self._database.lock_clause)
            replay = write.find_replay(self._expiry) if may_be_repeated else None
            may_be_repeated = True
            finished = _replayed(write, replay, load) if replay else write.finish(*work(write))
            if call.validate_only:
                raise _ValidateOnlyRollback(WriteResult(finished.records, finished.effect, ""))
            return finished

        return transact

    def _append_to_log(self, transaction: Transaction, writes: list[FinishedWrite[T]]) -> list[WriteResult[T]]:
        """Writes the change sets and outcomes of all writes of a transaction. Returns their results.

        It runs last, because every other writer waits from its first statement until the commit.
        """
        change_sets = [change_set for write in writes for change_set in write.change_sets]
        offsets = [end - len(change_sets) for end in accumulate(len(write.change_sets) for write in writes)]
        outcomes = [(write.outcome, offset) for write, offset in zip(writes, offsets, strict=True) if write.outcome]
        head = self._write_log(transaction, change_sets, outcomes)
        return [
            WriteResult(
                write.records,
                write.effect,
                self._keys.revision(head + offset if write.replayed_revision is None else write.replayed_revision),
            )
            for write, offset in zip(writes, offsets, strict=True)
        ]

    def _write_log(
        self, transaction: Transaction, change_sets: list[NewChangeSet], outcomes: list[tuple[NewOutcome, int]]
    ) -> int:
        """Writes change sets and outcomes. Returns the head revision.

        While no other process writes, it assumes the head that the last transaction of this process left. So PostgreSQL
        needs one round trip before the commit, and otherwise two. If the assumption fails, all statements run again.
        """
        lock_clause = self._database.lock_clause
        store_outcomes = partial(
            idempotency.store_outcomes,
            transaction,
            outcomes,
            self._expiry.expired(self._clock()),
            skip_locked=bool(lock_clause),
        )
        if not change_sets:
            store_outcomes()
            if outcomes:
                return idempotency.stored_revision(transaction, outcomes[0][0])
            return change_log.read_head(transaction).revision
        last = self._last_head
        if last and self._is_only_writer:
            self._is_only_writer = False
            head = change_log.append(transaction, change_sets, last)
            store_outcomes()
            if change_log.read_head(transaction) == head:
                self._last_head, self._is_only_writer = head, True
                return head.revision
        found = change_log.read_head(transaction, lock_clause)
        self._is_only_writer = found == last and lock_clause != ""  # without locks a read of the head costs little
        self._last_head = head = change_log.append(transaction, change_sets, found)
        store_outcomes()
        return head.revision


def _replayed(write: Write, outcome: StoredOutcome, load: Callable[[Write, list[str]], list[T]]) -> FinishedWrite[T]:
    """Returns the first answer to a repeated call, with the records as they are now."""
    return FinishedWrite(load(write, outcome.record_ids), outcome.effect, replayed_revision=outcome.revision)
