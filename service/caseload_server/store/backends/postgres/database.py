"""PostgreSQL through psycopg 3, for any number of instances on one database.

Transactions are read committed. Row locks, unique indexes and the order of revisions enforce the rules.
https://www.postgresql.org/docs/current/transaction-iso.html, https://www.psycopg.org/psycopg3/docs/
"""

import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

import psycopg

from caseload_server.domain import errors
from caseload_server.store.backends.group_commit import unchanged
from caseload_server.store.backends.postgres.activity import ActivitySampler
from caseload_server.store.backends.postgres.connection import READS, Connection, SessionSettings, connect
from caseload_server.store.backends.postgres.connection_pool import ACQUIRE_TIMEOUT_SECONDS, ConnectionPool
from caseload_server.store.backends.postgres.driver_errors import retry
from caseload_server.store.backends.postgres.reads import read_session
from caseload_server.store.backends.postgres.store_check import StoreCheck
from caseload_server.store.backends.postgres.transaction import SnapshotTransaction
from caseload_server.store.backends.postgres.writes import PostgresWriter
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

_BEGIN_SNAPSHOT: Final = b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_CHANNEL: Final = "caseload_revision"
_POLL_SECONDS: Final = 0.5
"""How long `wait_for_commit` waits for a notification, in seconds."""

_MERGED_IDS: Final = """
SELECT DISTINCT one.id FROM (SELECT atom AS value, :after AS id FROM json_each(:values)) AS merged
CROSS JOIN LATERAL (SELECT {id} AS id FROM {table} WHERE {where} ORDER BY {order} LIMIT :limit) AS one
ORDER BY 1 LIMIT :limit"""


class PostgresDatabase:
    """Implements Database on PostgreSQL."""

    lock_clause = " FOR NO KEY UPDATE"
    dialect = Dialect(
        # With = the planner ignores an order by the column, and may scan the primary key past all other values.
        index_range="({column}, {record_id}) > ({value}, :after) AND {column} <= {value}",
        index_order="{column}, {record_id}",
        # Without a limit of its own, PostgreSQL sorts a whole scan with conditions before it merges the scans.
        merged_scan="SELECT * FROM ({scan} ORDER BY {order} LIMIT :limit) AS scan{number}",
        unindexed="",
        indexed="",
        merged_ids=_MERGED_IDS,
        merges_in_full=True,
        with_ids="{table} AS record WHERE record.{id} = ANY(ARRAY({ids}))",
        fence=" OFFSET 0",
        has_statistics=True,
    )
    commit_may_be_ambiguous = True

    def __init__(
        self, url: str, *, connections: int = 16, commit_timeout_seconds: float = 3.0, reads: SessionSettings = READS
    ) -> None:
        """Opens no connection yet.

        Args: connections, limit for reads, and the same for writes; commit_timeout_seconds, how long a caller waits
        for a COMMIT; reads, the settings of the sessions for reads.
        """
        self.on_commit: Callable[[int, float], object] = no_metrics
        self._readers = ConnectionPool(partial(connect, url, reads), connections)
        self._snapshots = threading.Semaphore(connections - connections // 4)
        self._waiting_for_snapshot: deque[None] = deque()
        self._writer = PostgresWriter(
            ConnectionPool(partial(connect, url), connections),
            max_leaders=connections,
            commit_timeout_seconds=commit_timeout_seconds,
            on_commit=lambda writes, seconds: self.on_commit(writes, seconds),  # noqa: PLW0108 - it is set later
        )
        self._group_commit = self._writer.group_commit
        self._pools = (self._readers, self._writer.pool)
        self._readers.on_connect_failure = self._writer.pool.give_way
        self._writer.pool.on_connect_failure = self._readers.give_way
        self._connect = partial(self._connect_beside_pools, url)
        self._listener: Connection | None = None
        self._wake, self._woken = socket.socketpair()
        self._store_check = StoreCheck(self._connect)
        self._activity = ActivitySampler(partial(connect, url))

    def _connect_beside_pools(self, url: str) -> Connection:
        try:
            return connect(url)
        except psycopg.OperationalError:
            for pool in self._pools:
                pool.give_way(urgent=True)
            raise

    def open(self) -> None:
        """Opens the connection of `check`, whose lock excludes imports. Raises SchemaError, psycopg.Error."""
        try:
            self._store_check.open()
        except BaseException:
            self.close()
            raise

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        return retry(partial(self._read, sql, parameters))

    def _read(self, sql: str, parameters: Parameters | None) -> list[Row]:
        connection = self._readers.acquire()
        try:
            return read_session(connection).run(sql, parameters)
        finally:
            self._readers.release(connection)

    @contextmanager
    def snapshot(self) -> Iterator[Transaction]:
        with self._snapshot_permit():
            connection = retry(self._begin_snapshot)
            try:
                yield SnapshotTransaction(read_session(connection))
            finally:
                with suppress(psycopg.Error):
                    read_session(connection).command(b"ROLLBACK")  # psycopg's would drop every prepared statement
                self._readers.release(connection)

    @contextmanager
    def _snapshot_permit(self) -> Iterator[None]:
        """Keeps a quarter of the connections for reads of one record, which are fast. Raises StoreBusy."""
        self._waiting_for_snapshot.append(None)
        has_permit = self._snapshots.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS)
        self._waiting_for_snapshot.pop()
        if not has_permit:
            raise errors.StoreBusy(errors.StoreBusy.POOL_WAIT)
        try:
            yield
        finally:
            self._snapshots.release()

    def _begin_snapshot(self) -> Connection:
        connection = self._readers.acquire()
        try:
            read_session(connection).command(_BEGIN_SNAPSHOT)
        except BaseException:
            self._readers.release(connection)
            raise
        return connection

    def write(self, work: Callable[[Transaction], T]) -> T:
        return self._writer.write(work, unchanged, Sharing(alone=True))

    def write_with_tail(self, work: Callable[[Transaction], S], tail: Tail[S, T], sharing: Sharing) -> T:
        return self._writer.write(work, tail, sharing)

    def gauges(self) -> Gauges:
        waiting = ("pool_waiting", {"pool": "snapshot"}, lambda: len(self._waiting_for_snapshot))
        pools = [*self._readers.gauges("read"), waiting, *self._writer.pool.gauges("write")]
        return [*pools, *self._activity.start()]

    def check(self) -> None:
        for pool in self._pools:
            pool.close_unused()
        self._writer.full_disk.report_recovery()
        if self._writer.met_read_only:
            self._writer.met_read_only = False
            self._store_check.close()  # its session would not see what was set since its start
        try:
            self._writer.commits_stalled = self._store_check.run()
        finally:
            if self._store_check.store_is_replaced:  # reads and writes would use the secret of the former store
                self._close_pools()
        if self._writer.commits_stalled:
            raise errors.StoreUnavailable(detail="commits wait for a standby")

    def wait_for_commit(self) -> None:
        try:
            if self._listener is None:
                self._listener = self._connect()
                self._listener.execute(f"LISTEN {_CHANNEL}")
                return  # earlier commits sent no notification to it: the caller looks now
            self._pause(self._listener.fileno())
            for _ in self._listener.notifies(timeout=0):
                pass
        except psycopg.Error:
            if self._listener is not None:
                self._listener.close()
            self._listener = None
            self._pause()

    def _pause(self, *files: int) -> None:
        """Waits until one of the files can be read or stop_waiting() is called, for _POLL_SECONDS at most."""
        poll = select.poll()
        with suppress(ValueError):  # close() was not able to wait for this thread
            for file in (self._woken.fileno(), *files):
                poll.register(file, select.POLLIN)
            poll.poll(_POLL_SECONDS * 1000)

    def stop_waiting(self) -> None:
        self._wake.close()  # the other end can be read from now on

    def _close_pools(self) -> None:
        for pool in self._pools:
            pool.close()

    def close(self) -> None:
        self._group_commit.close()
        self._activity.close()
        self._readers.close()
        self._writer.pool.close()
        self._store_check.close()
        if self._listener is not None:
            self._listener.close()
        self._wake.close()
        self._woken.close()
