"""SQLite through apsw: a connection a thread for reads, and one writer whose commits are shared.

https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw

from caseload_server.domain import errors
from caseload_server.store.backends.group_commit import GroupCommit, Job
from caseload_server.store.backends.protocol import Gauges, Parameters, Row, T, Transaction, Value, no_metrics

APPLICATION_ID: Final = 0x43534C44
"""Marks the file as ours ("CSLD")."""
SYNCHRONOUS: Final = "FULL"
"""A commit is on disk before it is acknowledged. With less, the power-loss test fails."""
_BUSY_SECONDS: Final = 5.0
_BUSY_SLEEP_SECONDS: Final = 0.0005
_MAX_BATCH: Final = 128
"""Writes that share a commit."""
_POLL_SECONDS: Final = 0.03
"""How often another process's commits are looked for."""
_STUCK_SECONDS: Final = 4.0
"""A commit that takes so long waits for a disk that hangs."""
_READER_CACHE_KIB: Final = 128
"""Of each thread's connection; the kernel has the file in memory anyway. SQLite's own 2 MB are 128 MB in 64 threads."""
_Reader = tuple[apsw.Connection, Any]
"""A connection, and the RLock that is held while it is read."""


def connect(path: Path, *, create: bool) -> apsw.Connection:
    """Opens the file for writing, with every setting the store relies on. Raises apsw.Error."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOMUTEX | (apsw.SQLITE_OPEN_CREATE if create else 0)
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=256)
    if connection.readonly("main"):  # SQLite falls back to it; a reader would leave a -wal and a -shm file behind
        connection.close()
        raise apsw.ReadOnlyError
    connection.set_busy_handler(_waiting())
    connection.pragma("trusted_schema", 0)
    connection.pragma("foreign_keys", 1)
    connection.pragma("secure_delete", 1)
    connection.pragma("synchronous", SYNCHRONOUS)
    connection.pragma("temp_store", 2)  # in memory: what a savepoint spills is pages of records
    return connection


def _waiting() -> Callable[[int], bool]:
    began = 0.0

    def wait_for_the_lock(tries: int) -> bool:
        # SQLite's own back-off starves some of several writing processes: short, equal sleeps share the lock better.
        nonlocal began
        if tries == 0:
            began = time.monotonic()
        time.sleep(_BUSY_SLEEP_SECONDS)
        return time.monotonic() - began < _BUSY_SECONDS

    return wait_for_the_lock


_FAILURES: Final[dict[type[BaseException], type[errors.DomainError]]] = {
    apsw.BusyError: errors.StoreBusy,
    apsw.LockedError: errors.StoreBusy,
    apsw.FullError: errors.StoreFull,
    apsw.ConnectionClosedError: errors.ShuttingDown,
    apsw.CursorClosedError: errors.ShuttingDown,
    apsw.IOError: errors.StoreUnavailable,
    apsw.CantOpenError: errors.StoreUnavailable,
    apsw.CorruptError: errors.StoreUnavailable,
    apsw.NotADBError: errors.StoreUnavailable,
    apsw.ReadOnlyError: errors.StoreUnavailable,
    apsw.NoMemError: errors.StoreUnavailable,
    apsw.ProtocolError: errors.StoreUnavailable,
    apsw.InterruptError: errors.StoreUnavailable,
    apsw.PermissionsError: errors.StoreUnavailable,
}


def _failure(error: BaseException, *, committing: bool = False) -> BaseException:
    """The domain's word for a database's failure; a defect of ours stays what it is."""
    if committing and not isinstance(error, apsw.BusyError | apsw.FullError):
        # The frames may have reached the file before the failing fsync: a later recovery could find them.
        return errors.OutcomeUnknown()
    failure = _FAILURES.get(type(error))
    return failure() if failure else error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # there is no -wal file before the first write
        return 0


class _Statements:
    """A connection as a Transaction."""

    __slots__ = ("_connection", "_open")

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._open: list[apsw.Cursor] = []

    def run(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        return list(self._connection.execute(sql, parameters))

    def pipeline(self, statements: Sequence[tuple[str, Parameters]]) -> list[Row]:
        first, *_ = [self.run(sql, parameters) for sql, parameters in statements]
        return first

    def fetch_page(self, sql: str, parameters: dict[str, Value]) -> Iterator[Row]:
        return self.rows(sql, parameters)

    def rows(self, sql: str, parameters: Parameters | None = None) -> Iterator[Row]:
        cursor = self._connection.execute(sql, parameters)
        self._open.append(cursor)
        return cursor

    def drop_open_rows(self) -> None:
        while self._open:
            self._open.pop().close(True)


class _Reading:
    """One state of the database, for the length of a with block."""

    __slots__ = ("_busy", "_connection", "_statements")

    def __init__(self, connection: apsw.Connection, busy: Any) -> None:
        self._connection = connection
        self._busy = busy
        self._statements = _Statements(connection)

    def __enter__(self) -> Transaction:
        self._busy.acquire()
        try:
            self._connection.execute("BEGIN")
        except BaseException as error:  # noqa: BLE001 - a lock that is kept hangs the thread's next read
            self._busy.release()
            raise _failure(error) from None
        return self._statements

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with suppress(apsw.Error):
            self._statements.drop_open_rows()
        with suppress(apsw.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self._busy.release()
        if isinstance(error, apsw.Error):
            raise _failure(error) from None


class SqliteDatabase:
    """A SQLite file as a Database.

    Writes share commits (`GroupCommit`). Each runs in a savepoint, so one caller's failure does not reach the others.
    """

    lock_clause = ""  # BEGIN IMMEDIATE locks the whole file
    commit_may_be_ambiguous = False

    def __init__(self, path: Path) -> None:
        """Opens an existing, migrated file. Raises apsw.Error."""
        self.committed: Callable[[int, float], object] = no_metrics
        self._path = path
        self._threads = threading.local()
        self._readers: list[_Reader] = []
        self._lock = threading.Lock()
        self._group_commit = GroupCommit(self._commit, _MAX_BATCH)
        self._committing_since = math.inf
        self._closed = False
        self._writer = connect(path, create=False)
        self._file = path.stat()
        self._transaction = _Statements(self._writer)

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        try:
            connection, busy = self._reader()
            with busy:
                return list(connection.execute(sql, parameters))
        except apsw.Error as error:
            raise _failure(error) from None

    def reading(self) -> _Reading:
        try:
            return _Reading(*self._reader())
        except apsw.Error as error:
            raise _failure(error) from None

    def _reader(self) -> _Reader:
        """This thread's connection, and the lock that a reading holds so that a close waits for it."""
        try:
            reader: _Reader = self._threads.reader
        except AttributeError:
            if not self._in_place():  # or SQLite would play the -wal file that lies there into another
                raise apsw.CantOpenError from None
            connection = connect(self._path, create=False)
            connection.pragma("query_only", 1)
            connection.pragma("cache_size", -_READER_CACHE_KIB)
            reader = self._threads.reader = (connection, threading.RLock())
            with self._lock:
                self._readers.append(reader)
                if self._closed:
                    connection.close()
        return reader

    def write(self, work: Callable[[Transaction], T]) -> T:
        return self._group_commit.write(work)

    def _commit(self, batch: list[Job[Any]]) -> None:
        execute = self._writer.execute
        committing = False
        began = time.perf_counter()
        try:
            self._begin()
            for job in batch:
                self._run(job)
            committing = True
            self._committing_since = time.monotonic()
            execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - whatever it was, no one in the batch may be told it went well
            # Refusals fail too: they may rest on a batch-mate's write that is gone now.
            for job in batch:
                job.error = _failure(error, committing=committing)
            with suppress(apsw.Error):
                if self._writer.in_transaction:
                    execute("ROLLBACK")
        else:
            with suppress(Exception):  # what is done stays done, also where it cannot be counted
                self.committed(len(batch), time.perf_counter() - began)
        finally:
            self._committing_since = math.inf

    def _begin(self) -> None:
        if self._writer.in_transaction:  # a rollback that failed
            self._writer.execute("ROLLBACK")
        self._writer.execute("BEGIN IMMEDIATE")
        if not self._in_place():  # looked at now, since another process may have kept the lock for seconds
            raise apsw.CantOpenError

    def _run(self, job: Job[Any]) -> None:
        """Runs one job in a savepoint. Raises apsw.Error where the whole transaction is lost."""
        execute = self._writer.execute
        execute("SAVEPOINT job")
        try:
            job.result = job.work(self._transaction)
        except BaseException as error:
            # FULL, IOERR and NOMEM may have rolled back the transaction with every job in it.
            if isinstance(error, apsw.Error) and not self._writer.in_transaction:
                raise
            job.error = _failure(error) if isinstance(error, apsw.Error) else error
            execute("ROLLBACK TO job")
        execute("RELEASE job")

    def gauges(self) -> Gauges:
        log = self._path.with_name(f"{self._path.name}-wal")
        return [("database_bytes", {}, partial(_size, self._path)), ("wal_bytes", {}, partial(_size, log))]

    def check(self) -> None:
        if not self._in_place() or time.monotonic() - self._committing_since > _STUCK_SECONDS:
            raise errors.StoreUnavailable
        self.read("SELECT head_revision FROM store")

    def _in_place(self) -> bool:
        """Whether the file was not moved away or replaced: what is written into one that was, the next start lacks."""
        try:
            return os.path.samestat(self._path.stat(), self._file)
        except OSError:
            return False

    def wait_for_commit(self) -> None:
        time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        self._group_commit.close()
        with self._lock:
            self._closed = True
        deadline = time.monotonic() + 1
        for connection, busy in self._readers:
            if busy.acquire(timeout=max(0, deadline - time.monotonic())):
                with suppress(apsw.Error):
                    connection.close()
                busy.release()
            # else a read has outlived its grace period: it ends with the process
        self._writer.close()  # the last connection of a file checkpoints it
