"""SQLite through apsw: one connection per thread for reads, and one writer with group commit.

https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous
"""

import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
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
    Query,
    Row,
    S,
    Sharing,
    T,
    Tail,
    Transaction,
    no_metrics,
)
from caseload_server.store.backends.sqlite.driver_errors import commit_error, domain_error
from caseload_server.store.backends.sqlite.file_guard import FileGuard
from caseload_server.store.backends.sqlite.log_size import LogSize
from caseload_server.store.backends.sqlite.write_health import WriteHealth

APPLICATION_ID: Final = 0x43534C44
"""Identifies a caseload file ("CSLD"). https://sqlite.org/pragma.html#pragma_application_id"""
SYNCHRONOUS: Final = "FULL"
"""A commit is on disk before it is acknowledged. With a lower level the power-loss test fails."""
_BUSY_TIMEOUT_SECONDS: Final = 5.0
"""How long a statement waits for the lock of another process."""
_BUSY_SLEEP_SECONDS: Final = 0.0005
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


def connect(path: Path, *, create: bool) -> apsw.Connection:
    """Opens the file for writing, with every setting that the store relies on. Raises apsw.Error."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOMUTEX | (apsw.SQLITE_OPEN_CREATE if create else 0)
    if create:  # SQLite itself would let other users read it
        with suppress(OSError):  # it exists, or SQLite describes what is wrong with the path
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=256)
    if connection.readonly("main"):  # SQLite falls back to read-only; a reader would leave a -wal and a -shm file
        connection.close()
        raise apsw.ReadOnlyError
    configure(connection)
    connection.pragma("foreign_keys", 1)
    connection.pragma("secure_delete", 1)
    connection.pragma("synchronous", SYNCHRONOUS)
    return connection


def configure(connection: apsw.Connection) -> None:
    """Sets what reading connections need too."""
    connection.set_busy_handler(_busy_handler())
    connection.pragma("trusted_schema", 0)
    connection.pragma("temp_store", 2)  # in memory: what a savepoint spills are pages with personal data


def _busy_handler() -> Callable[[int], bool]:
    started = 0.0

    def wait_for_lock(tries: int) -> bool:
        # SQLite's own back-off starves some of several writing processes. Short, equal sleeps share the lock better.
        nonlocal started
        if tries == 0:
            started = time.monotonic()
        time.sleep(_BUSY_SLEEP_SECONDS)
        return time.monotonic() - started < _BUSY_TIMEOUT_SECONDS

    return wait_for_lock


def _is_past_deadline() -> bool:
    """SQLite calls it between steps, and ends the statement when it returns True."""
    return time.monotonic() > read_deadline.get()


class SqliteTransaction:
    """Implements Transaction on a connection."""

    __slots__ = ("_connection", "_cursors")

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._cursors: list[apsw.Cursor] = []

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        return list(self._connection.execute(sql, parameters))

    def rows(self, query: Query) -> Iterator[Row]:
        cursor = self._connection.execute(query.sql, query.parameters)
        self._cursors.append(cursor)
        return cursor

    def close_cursors(self) -> None:
        while self._cursors:
            self._cursors.pop().close(True)


class _Snapshot:
    """A read-only transaction for the duration of a with block."""

    __slots__ = ("_connection", "_lock", "_transaction")

    def __init__(self, connection: apsw.Connection, lock: Any) -> None:
        self._connection = connection
        self._lock = lock
        self._transaction = SqliteTransaction(connection)

    def __enter__(self) -> Transaction:
        self._lock.acquire()
        try:
            self._connection.execute("BEGIN")
        except BaseException as error:  # noqa: BLE001 - a lock that is not released blocks the thread's next read
            self._lock.release()
            raise domain_error(error) from None
        return self._transaction

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with suppress(apsw.Error):
            self._transaction.close_cursors()
        with suppress(apsw.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self._lock.release()
        if isinstance(error, apsw.Error):
            raise domain_error(error) from None


class SqliteDatabase:
    """Implements Database on a SQLite file.

    Writes share commits (`GroupCommit`). Each runs in a savepoint, so that the failure of one does not affect others.
    """

    lock_clause = ""  # BEGIN IMMEDIATE locks the whole file
    dialect = Dialect(
        index_range="{column} = {value} AND {record_id} > :after",
        merged_scan="{scan}",
        unindexed="+",
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

    def snapshot(self) -> _Snapshot:
        try:
            return _Snapshot(*self._reader())
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
        self._writer.close()  # closing the last connection of a file checkpoints it
