"""Writes to PostgreSQL: shared transactions, and commits that lose their connection or wait for a standby."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

import psycopg
from psycopg import pq

from caseload_server.domain import errors
from caseload_server.store.backends.full_disk import FullDisk
from caseload_server.store.backends.group_commit import Batch, GroupCommit, Job, run_tails
from caseload_server.store.backends.postgres.commit_turn import CommitTurn, CommitTurns
from caseload_server.store.backends.postgres.connection import Connection
from caseload_server.store.backends.postgres.connection_pool import ConnectionPool
from caseload_server.store.backends.postgres.driver_errors import (
    CommitUnconfirmed,
    is_lock_conflict,
    is_read_only,
    retry,
)
from caseload_server.store.backends.postgres.pipeline import (
    EarlierStatementFailed,
    NoAnswer,
    StatementPipeline,
    wait_for_result,
)
from caseload_server.store.backends.postgres.transaction import WriteTransaction
from caseload_server.store.backends.protocol import OnCommit, S, SerializationConflict, Sharing, T, Tail, Transaction

MAX_BATCH: Final = 60
"""Most writes in one transaction. PostgreSQL keeps the state of more than 64 savepoints outside of shared memory.
https://www.postgresql.org/docs/current/subxacts.html"""
_IN_TRANSACTION: Final = {pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR}
_POLL_SECONDS: Final = 0.001
"""Interval at which a transaction looks for further writes, while it waits for the commit of another."""
_COLLECT_SECONDS: Final = 1.0
"""How long it looks for further writes at most."""
MAX_LEADERS: Final = 4
"""Most shared transactions at once. While one waits for its statements or its commit, the others run theirs."""
_LOCK_FIRST: Final = "LOCK TABLE request IN ROW EXCLUSIVE MODE"
"""Takes the lock that a write needs at its end. A migration also locks this table first, so the two never deadlock."""
_WAIT_BRIEFLY: Final = """
SELECT set_config('caseload.lock_timeout', current_setting('lock_timeout'), true),
    set_config('lock_timeout', '20ms', true)"""
"""Limits the wait for a lock to 20 ms. A write that waits delays all others of its transaction, and two transactions
could wait for each other. PostgreSQL looks for deadlocks only after a second."""
_WAIT_LONG: Final = "SELECT set_config('lock_timeout', current_setting('caseload.lock_timeout'), true)"
_SAVEPOINT: Final = "SAVEPOINT job"
_RELEASE: Final = "RELEASE SAVEPOINT job"
_ROLL_BACK: Final = "ROLLBACK TO SAVEPOINT job"


class PostgresWriter:
    """Runs writes, in shared transactions or each in its own.

    After a conflict, a failed transaction or a lost connection, each write runs again, in a transaction of its own. A
    connection may be lost during COMMIT. If the first run committed, the second finds the stored outcome of its
    request_id and returns it. The second run writes the outcome again, so that its commit waits for the standby too.
    """

    def __init__(
        self, pool: ConnectionPool, *, max_leaders: int, commit_timeout_seconds: float, on_commit: OnCommit
    ) -> None:
        """Args: pool, the connections for writes; max_leaders, the most shared transactions at once, reduced to
        MAX_LEADERS; commit_timeout_seconds, how long a caller waits for a COMMIT; on_commit, is called with the number
        of writes and the seconds of each commit.
        """
        self.commits_stalled = False
        """Whether commits wait for a standby. Writes are rejected until `PostgresDatabase.check` finds none."""
        self.met_read_only = False
        """Whether a session was read-only. `PostgresDatabase.check` then looks in a new session, too."""
        self.full_disk = FullDisk()
        self.pool = pool
        self.commit_timeout_seconds = commit_timeout_seconds
        self._turns = CommitTurns()
        self.group_commit = GroupCommit(self._commit_batch, MAX_BATCH, min(MAX_LEADERS, max_leaders))
        self._pipelines: WeakKeyDictionary[Connection, StatementPipeline] = WeakKeyDictionary()
        self._on_commit = on_commit
        self._abandoned: set[Connection] = set()

    def write(self, work: Callable[[Transaction], S], tail: Tail[S, T], sharing: Sharing) -> T:
        """Implements Database.write_with_tail."""
        job = Job(work, tail, sharing)
        try:
            if not sharing.alone:
                self.group_commit.run(job)
            result = job.answer() if job.done else self._run_alone(job)
        except errors.StoreFull:
            self.full_disk.record_failure()
            raise
        self.full_disk.record_success()
        return result

    def _run_alone(self, job: Job[S, T]) -> T:
        if self.commits_stalled and not job.commit_unconfirmed:  # this one would wait for the standby too
            raise errors.StoreUnavailable
        return retry(partial(self._transact, job), commit_unconfirmed=job.commit_unconfirmed)

    def _transact(self, job: Job[S, T]) -> T:
        with self._begin() as (connection, pipeline):
            transaction = WriteTransaction(pipeline)
            job.run(transaction)
            run_tails(transaction, [job])
            pipeline.flush()
            self._commit(connection, 1)
        return job.result

    @contextmanager
    def _begin(self) -> Iterator[tuple[Connection, StatementPipeline]]:
        """Queues BEGIN on a connection of the pool. Rolls back if the with block raises or does not commit."""
        connection = self.pool.acquire()
        pipeline = self._pipeline(connection)
        try:
            pipeline.restart("BEGIN")
            pipeline.add(_LOCK_FIRST)
            yield connection, pipeline
        except (psycopg.Error, EarlierStatementFailed) as error:
            if is_read_only(error.error if isinstance(error, EarlierStatementFailed) else error):
                self.met_read_only = True
                connection.close()  # the pool then closes its other idle sessions too
            raise
        finally:
            if connection.pgconn.transaction_status in _IN_TRANSACTION:
                with suppress(psycopg.Error):
                    pipeline.roll_back()
            if connection in self._abandoned:
                self.pool.discard()
            else:
                self.pool.release(connection)

    def _pipeline(self, connection: Connection) -> StatementPipeline:
        pipeline = self._pipelines.get(connection)
        if pipeline is None:
            pipeline = self._pipelines[connection] = StatementPipeline(connection)
        return pipeline

    def _commit_batch(self, batch: Batch) -> None:
        """Runs jobs in one transaction, for GroupCommit."""
        ran: list[Job[Any, Any]] = []
        try:
            if self.commits_stalled:
                raise errors.StoreUnavailable
            self._transact_batch(batch, ran)
        except errors.DomainError as failure:
            _fail(ran or batch.jobs, failure)
        except psycopg.errors.LockNotAvailable:  # of the counter: each write alone would wait for it as long again
            _fail([*ran, *batch.take_more()], errors.StoreBusy(errors.StoreBusy.LOCK_WAIT))
        except NoAnswer as failure:  # each write alone would wait for what the hanging transaction locks
            _fail([job for job in batch.jobs if not job.runs_alone], errors.StoreUnavailable(detail=str(failure)))
        except CommitUnconfirmed:
            _send_alone(batch.jobs, unconfirmed=ran)
        except EarlierStatementFailed as failure:
            _settle(batch, failure)
        except (psycopg.Error, SerializationConflict):
            _send_alone(batch.jobs, unconfirmed=[])
        else:
            for job in ran:
                job.done = True

    def _transact_batch(self, batch: Batch, ran: list[Job[Any, Any]]) -> None:
        """Runs jobs and their tails, and commits. Args: ran, the list to which it adds the jobs that ran."""
        with self._begin() as (connection, pipeline), self._turns.wait() as turn:
            if not batch.waits_for_lock:
                pipeline.add(_WAIT_BRIEFLY)
            self._run_jobs(batch, ran, pipeline, turn)
            if all(job.error for job in ran):
                return  # and roll back: each error depends on committed data only
            self._take_turn(turn)
            pipeline.add(_WAIT_LONG)
            pipeline.mark()
            written = run_tails(WriteTransaction(pipeline), ran)
            pipeline.flush()
            self._commit(connection, len(written))

    def _take_turn(self, turn: CommitTurn) -> None:
        """Waits until no other transaction of this process holds the counter. Raises StoreBusy, StoreUnavailable."""
        is_taken = turn.take()
        if self.commits_stalled:
            raise errors.StoreUnavailable
        if turn.counter_is_locked or not is_taken:
            raise errors.StoreBusy(errors.StoreBusy.LOCK_WAIT)

    def _run_jobs(self, batch: Batch, ran: list[Job[Any, Any]], pipeline: StatementPipeline, turn: CommitTurn) -> None:
        """Runs jobs until one finds a row locked, or until the queue is empty and no other transaction commits."""
        jobs = batch.jobs.copy()
        deadline = time.monotonic() + _COLLECT_SECONDS
        while jobs or not (turn.is_taken or batch.is_full or time.monotonic() > deadline):
            for job in jobs:
                if not self._run_in_savepoint(job, pipeline):
                    _reject_waiting(batch, job)
                    return
                if not job.runs_alone:
                    ran.append(job)
                if batch.waits_for_lock and job is batch.leader:
                    pipeline.add(_WAIT_BRIEFLY)
            jobs = batch.take_more()
            if not jobs:
                turn.take(_POLL_SECONDS)

    def _run_in_savepoint(self, job: Job[Any, Any], pipeline: StatementPipeline) -> bool:
        """Runs one job of a shared transaction. Returns False if it found a row locked by another transaction.

        Raises psycopg.Error and EarlierStatementFailed if the whole transaction is lost.
        """
        met_lock = False
        pipeline.add(_SAVEPOINT)
        pipeline.mark()
        try:
            job.run(WriteTransaction(pipeline))
        except EarlierStatementFailed:
            raise
        except psycopg.Error as error:
            if pipeline.transaction_status != pq.TransactionStatus.INERROR:
                raise
            met_lock = is_lock_conflict(error)
            job.runs_alone = not met_lock
        except SerializationConflict:
            job.runs_alone = True
        except BaseException as refusal:  # noqa: BLE001 - it ends this job only
            job.error = refusal
        else:
            pipeline.add(_RELEASE)
            return True
        if met_lock:
            job.conflicts += 1
        pipeline.drop_unsent()
        pipeline.add(_ROLL_BACK)
        pipeline.add(_RELEASE)
        return not met_lock

    def _commit(self, connection: Connection, writes: int) -> None:
        """Raises OutcomeUnknown, CommitUnconfirmed; SerializationConflict if the server rolled back instead;
        psycopg.Error if it said why."""
        warnings: list[str | None] = []
        on_notice = lambda notice: warnings.append(notice.sqlstate)  # noqa: E731 - its name is needed to remove it
        connection.add_notice_handler(on_notice)
        started = time.perf_counter()
        try:
            connection.pgconn.send_query(b"COMMIT")
            if not wait_for_result(connection.pgconn, self.commit_timeout_seconds):
                self._abandon_commit(connection)
                raise errors.OutcomeUnknown
            result = connection.pgconn.get_result()
            while wait_for_result(connection.pgconn, self.commit_timeout_seconds) and connection.pgconn.get_result():
                pass
        except psycopg.Error:
            raise CommitUnconfirmed from None
        finally:
            connection.remove_notice_handler(on_notice)
        if connection.pgconn.status != pq.ConnStatus.OK:
            raise CommitUnconfirmed
        if "01000" in warnings:  # an administrator canceled its wait for the standby
            raise errors.OutcomeUnknown
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:  # the transaction is rolled back
            raise psycopg.errors.error_from_result(result)
        if result is None or result.command_status != b"COMMIT":
            raise SerializationConflict
        with suppress(Exception):  # a failing metric must not turn a committed write into an error
            self._on_commit(writes, time.perf_counter() - started)

    def _abandon_commit(self, connection: Connection) -> None:
        """Stops waiting for a COMMIT, but does not cancel it: others could then see data that can still be lost."""
        self.commits_stalled = True  # until `check` finds no waiting commit
        self._abandoned.add(connection)
        threading.Thread(
            target=self._await_abandoned_commit, args=(connection,), name="abandoned-commit", daemon=True
        ).start()

    def _await_abandoned_commit(self, connection: Connection) -> None:
        with suppress(psycopg.Error):
            wait_for_result(connection.pgconn, None)
        connection.close()
        self._abandoned.discard(connection)


def _fail(jobs: list[Job[Any, Any]], failure: errors.DomainError) -> None:
    """Ends jobs whose commit failed."""
    for job in jobs:
        job.fail_commit(failure)


def _settle(batch: Batch, failure: EarlierStatementFailed) -> None:
    """Rejects the jobs of a batch that waited too long for a migration, and those in the queue, or sends them alone."""
    if failure.is_lock_timeout_of(_LOCK_FIRST):
        _fail([*batch.jobs, *batch.take_more()], errors.StoreBusy(errors.StoreBusy.LOCK_WAIT))
    else:
        _send_alone(batch.jobs, unconfirmed=[])


def _reject_waiting(batch: Batch, job: Job[Any, Any]) -> None:
    """If the first job of a batch timed out on a lock, rejects it and the queued jobs that need the same record."""
    if batch.waits_for_lock and job is batch.leader:
        for one in [job, *batch.take_more(sharing=True)]:
            one.fail(errors.StoreBusy(errors.StoreBusy.LOCK_WAIT))


def _send_alone(jobs: list[Job[Any, Any]], unconfirmed: list[Job[Any, Any]]) -> None:
    """Lets the caller of each job run it alone. Args: unconfirmed, the jobs whose commit may have succeeded."""
    for job in jobs:
        job.runs_alone = True
        job.commit_unconfirmed = job in unconfirmed and job.error is None
