"""SQLite through apsw: one connection per thread for reads, and one writer with group commit."""

import math
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import apsw

from caseload_server.domain import errors
from caseload_server.domain.call_deadline import read_deadline
from caseload_server.store.backends.full_disk import FullDisk
from caseload_server.store.backends.group_commit import Batch, GroupCommit, Job, run_tails, unchanged
from caseload_server.store.backends.protocol import (
    Dialect,
    Gauges,
    Parameters,
    Row,
    S,
    Sharing,
    T,
    Tail,
    Transaction,
    no_metrics,
)
from caseload_server.store.backends.sqlite.connection import connect
from caseload_server.store.backends.sqlite.driver_errors import commit_error, domain_error
from caseload_server.store.backends.sqlite.file_guard import FileGuard
from caseload_server.store.backends.sqlite.log_size import LogSize
from caseload_server.store.backends.sqlite.transaction import Snapshot, SqliteTransaction
from caseload_server.store.backends.sqlite.write_health import WriteHealth

_MAX_BATCH: Final = 128
"""Writes that share one commit."""
_POLL_SECONDS: Final = 0.03
"""Interval at which `wait_for_commit` returns, so that commits of other processes are found."""
_STUCK_SECONDS: Final = 4.0
"""A commit that takes longer than this waits for a disk that does not respond."""
_READER_CACHE_KIB: Final = 128
"""Page cache of each reading connection, in KiB. The kernel caches the file as well. SQLite's default of 2 MB would
be 128 MB in 64 threads."""
_STEPS_PER_DEADLINE_CHECK: Final = 20_000
"""Steps of SQLite's virtual machine between two looks at the clock: about a millisecond.
https://sqlite.org/c3ref/progress_handler.html"""
_Reader = tuple[apsw.Connection, Any]
"""A reading connection, and the RLock that is held while it is in use."""


def _is_past_deadline() -> bool:
    """SQLite calls it between steps, and ends the statement when it returns True."""
    return time.monotonic() > read_deadline.get()


_MERGED_IDS: Final = """
WITH RECURSIVE merged(id, value) AS (
    SELECT :after, atom FROM json_each(:values)
    UNION ALL
    SELECT (SELECT {id} FROM {table} WHERE {where} ORDER BY {order} LIMIT 1), merged.value
    FROM merged WHERE merged.id IS NOT NULL
    ORDER BY 1
)
SELECT DISTINCT id FROM merged WHERE id > :after LIMIT :limit"""
"""ORDER BY makes a priority queue of the recursion, which yields its rows in this order: https://sqlite.org/lang_with.html"""


class SqliteDatabase:
    """Implements Database on a SQLite file.

    Writes share commits (`GroupCommit`). Each runs in a savepoint, so that the failure of one does not affect others.
    """

    lock_clause = ""  # BEGIN IMMEDIATE locks the whole file
    dialect = Dialect(
        index_range="{column} = {value} AND {record_id} > :after",
        index_order="{record_id}",  # for an expression, SQLite does not see that it is constant
        merged_scan="{scan}",
        unindexed="+",
        indexed=" INDEXED BY {index}",
        merged_ids=_MERGED_IDS,
        merges_in_full=False,
        with_ids="({ids}) AS given CROSS JOIN {table} AS record WHERE record.{id} = given.id",
        fence="",
        has_statistics=False,
    )
    commit_may_be_ambiguous = False

    def __init__(self, path: Path, name: Path | None = None) -> None:
        """Opens an existing, migrated file. Raises apsw.Error.

        Args: path, without symbolic links; name, the path with them, by which the next start will find the file.
        """
        self.on_commit: Callable[[int, float], object] = no_metrics
        self._path = path
        self._local = threading.local()
        self._readers: list[_Reader] = []
        self._lock = threading.Lock()
        self._group_commit = GroupCommit(self._commit_or_reject, _MAX_BATCH)
        self._committing_since = math.inf
        self._closed = False
        self._writer = connect(path, create=False)
        list(self._writer.execute("SELECT 1 FROM sqlite_schema"))  # opens the -wal and the -shm file
        self._files = FileGuard(path, name or path)
        self._transaction = SqliteTransaction(self._writer)
        self._write_health = WriteHealth(self._writer)
        self._full_disk = FullDisk()
        self._log_size = LogSize(path.with_name(f"{path.name}-wal"), self._connect)
        self._log_size.start()

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        try:
            connection, lock = self._reader()
            with lock:
                return list(connection.execute(sql, parameters))
        except apsw.Error as error:
            raise domain_error(error) from None

    def snapshot(self) -> Snapshot:
        try:
            return Snapshot(*self._reader())
        except apsw.Error as error:
            raise domain_error(error) from None

    def _connect(self) -> apsw.Connection:
        if not self._files.is_intact():  # SQLite would replay the -wal file at this path into another database
            raise apsw.CantOpenError
        return connect(self._path, create=False)

    def _reader(self) -> _Reader:
        """Returns this thread's connection, and the lock that a reader holds so that `close` waits for it."""
        try:
            reader: _Reader = self._local.reader
        except AttributeError:
            connection = self._connect()
            connection.pragma("query_only", 1)
            connection.pragma("cache_size", -_READER_CACHE_KIB)
            connection.set_progress_handler(_is_past_deadline, _STEPS_PER_DEADLINE_CHECK)
            reader = self._local.reader = (connection, threading.RLock())
            with self._lock:
                self._readers.append(reader)
                if self._closed:
                    connection.close()
        return reader

    def write(self, work: Callable[[Transaction], T]) -> T:
        return self.write_with_tail(work, unchanged, Sharing())

    def write_with_tail(self, work: Callable[[Transaction], S], tail: Tail[S, T], sharing: Sharing) -> T:
        job = Job(work, tail, sharing)  # also one that should be alone: there is one writer, so others wait in any case
        self._group_commit.run(job)
        if isinstance(job.error, errors.StoreFull):
            self._full_disk.record_failure()
        result = job.answer()
        self._full_disk.record_success()
        return result

    def _commit_or_reject(self, batch: Batch) -> None:
        if self._write_health.accepts_writes():
            self._commit(batch)
        else:
            for job in batch.jobs:
                job.fail(errors.StoreUnavailable())

    def _commit(self, batch: Batch) -> None:
        execute = self._writer.execute
        committing = False
        started = time.perf_counter()
        try:
            self._begin()
            jobs = batch.jobs.copy()
            while jobs:
                for job in jobs:
                    self._run(job)
                jobs = batch.take_more()
            written = run_tails(self._transaction, batch.jobs)
            committing = True
            self._committing_since = time.monotonic()
            execute("COMMIT")
            self._files.require_log()
        except BaseException as error:  # noqa: BLE001 - after any failure no write of the batch may report success
            for job in batch.jobs:
                job.fail_commit(self._failure(error, committing=committing))
            with suppress(apsw.Error):
                if self._writer.in_transaction:
                    execute("ROLLBACK")
                self._files.save_log(self._writer)
        else:
            if written:
                with suppress(Exception):  # a failing metric must not turn a committed write into an error
                    self.on_commit(len(written), time.perf_counter() - started)
        finally:
            self._committing_since = math.inf
            for job in batch.jobs:
                job.done = True

    def _begin(self) -> None:
        if self._writer.in_transaction:  # an earlier rollback failed
            self._writer.execute("ROLLBACK")
        self._writer.execute("BEGIN IMMEDIATE")
        if not self._files.is_intact():  # checked under the lock, for which this process may have waited for seconds
            raise apsw.CantOpenError

    def _run(self, job: Job[Any, Any]) -> None:
        """Runs one job in a savepoint. Raises apsw.Error where the whole transaction is lost."""
        execute = self._writer.execute
        execute("SAVEPOINT job")
        try:
            job.run(self._transaction)
        except BaseException as error:
            # FULL, IOERR and NOMEM may have rolled back the transaction with every job in it.
            if isinstance(error, apsw.Error) and not self._writer.in_transaction:
                raise
            job.error = self._failure(error) if isinstance(error, apsw.Error) else error
            execute("ROLLBACK TO job")
        execute("RELEASE job")

    def _failure(self, error: BaseException, *, committing: bool = False) -> BaseException:
        """Returns what to raise for an error of the writer. Call it before a rollback, which may set another errno."""
        system_error = self._writer.system_errno
        self._write_health.record(error, system_error)
        return commit_error(error, system_error) if committing else domain_error(error, system_error)

    def gauges(self) -> Gauges:
        return [
            ("database_bytes", {}, lambda: self._path.stat().st_size),
            ("wal_bytes", {}, self._log_size.bytes),
            ("database_free_bytes", {}, lambda: shutil.disk_usage(self._path.parent).free),
        ]

    def check(self) -> None:
        if not self._files.is_intact():
            with suppress(errors.DomainError):
                self.write(lambda _: None)  # it fails, and saves the content of a lost -wal file
            raise errors.StoreUnavailable(detail=self._files.fault())
        if time.monotonic() - self._committing_since > _STUCK_SECONDS:
            raise errors.StoreUnavailable
        self._full_disk.report_recovery()
        if failure := self._write_health.failure:
            self._probe(" ".join(failure.values()))
        self.read("SELECT head_revision FROM store")

    def _probe(self, failure: str) -> None:
        """Runs a write without statements, before which `WriteHealth` probes. Raises StoreUnavailable."""
        try:
            self.write(lambda _: None)
        except errors.StoreUnavailable:
            raise errors.StoreUnavailable(detail=f"it rejects writes: {failure}") from None

    def wait_for_commit(self) -> None:
        time.sleep(_POLL_SECONDS)

    def stop_waiting(self) -> None:
        """Does nothing: no wait is longer than _POLL_SECONDS."""

    def close(self) -> None:
        self._group_commit.close()
        self._log_size.stop()
        with self._lock:
            self._closed = True
        deadline = time.monotonic() + 1
        for connection, lock in self._readers:
            if lock.acquire(timeout=max(0, deadline - time.monotonic())):
                with suppress(apsw.Error):
                    connection.close()
                lock.release()
            # else a read outlived its grace period: it ends with the process
        if self._files.has_damaged_log():  # what is missing in the -wal file would become empty pages of the database
            self._writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._files.close()
        self._writer.close()  # closing the last connection of a file checkpoints it
