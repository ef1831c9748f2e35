"""Writes to PostgreSQL: transactions, and commits that may be lost or wait for a standby."""

import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import psycopg
from psycopg import pq

from caseload_server.domain import errors
from caseload_server.store.backends.postgres.connection import Connection
from caseload_server.store.backends.postgres.connection_pool import ConnectionPool
from caseload_server.store.backends.postgres.driver_errors import CommitUnconfirmed, retry
from caseload_server.store.backends.postgres.transaction import PostgresTransaction
from caseload_server.store.backends.protocol import OnCommit, T, Transaction


class PostgresWriter:
    """Runs writes, and retries them after a conflict or a lost connection.

    That includes a connection lost during COMMIT: if the first attempt committed, the stored outcome of its
    request_id answers the retry. The retry writes that outcome again, so its answer waits for the standby as any
    commit does.
    """

    def __init__(self, pool: ConnectionPool, commit_timeout_seconds: float, on_commit: OnCommit) -> None:
        """Args: pool, of connections for writes; commit_timeout_seconds, how long a caller waits for a COMMIT."""
        self.commits_stalled = False
        """Whether commits wait for a standby. Writes are rejected until `PostgresDatabase.check` finds none."""
        self.pool = pool
        self.commit_timeout_seconds = commit_timeout_seconds
        self._on_commit = on_commit
        self._abandoned: set[Connection] = set()

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Implements Database.write."""
        if self.commits_stalled:  # they wait for a standby, and so would this one
            raise errors.StoreUnavailable
        return retry(partial(self._transact, work))

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        connection = self.pool.acquire()
        try:
            connection.execute("BEGIN")
            result = work(PostgresTransaction(connection))
            self._commit(connection)
        except BaseException:
            if connection.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
            raise
        finally:
            if connection in self._abandoned:
                self.pool.discard()
            else:
                self.pool.release(connection)
        return result

    def _commit(self, connection: Connection) -> None:
        """Raises OutcomeUnknown, CommitUnconfirmed; StoreBusy where the server rolled back instead."""
        warnings: list[str | None] = []
        on_notice = lambda notice: warnings.append(notice.sqlstate)  # noqa: E731 - it is removed again by its name
        connection.add_notice_handler(on_notice)
        started = time.perf_counter()
        try:
            connection.pgconn.send_query(b"COMMIT")
            if not wait_for_result(connection.pgconn, self.commit_timeout_seconds):
                self._abandon_commit(connection)
                raise errors.OutcomeUnknown
            result = connection.pgconn.get_result()
            while connection.pgconn.get_result():
                pass
        except psycopg.Error:
            raise CommitUnconfirmed from None
        finally:
            connection.remove_notice_handler(on_notice)
        if connection.pgconn.status != pq.ConnStatus.OK:
            raise CommitUnconfirmed
        if "01000" in warnings:  # an administrator canceled its wait for the standby
            raise errors.OutcomeUnknown
        if result is None or result.command_status != b"COMMIT":
            raise errors.StoreBusy
        with suppress(Exception):  # a failing metric must not turn a committed write into an error
            self._on_commit(1, time.perf_counter() - started)

    def _abandon_commit(self, connection: Connection) -> None:
        """Leaves a COMMIT that waits for its standby. Canceling it would show others data that can still be lost."""
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


def wait_for_result(connection: pq.abc.PGconn, timeout_seconds: float | None) -> bool:
    """Waits for the result of the query that was sent. Returns False after the timeout.

    Args: timeout_seconds, None waits without limit. Raises psycopg.Error for a lost connection.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    poll = select.poll()
    while connection.flush() or connection.is_busy():
        poll.register(connection.socket, select.POLLIN)
        remaining_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poll.poll(remaining_ms):
            return False
        connection.consume_input()
    return True
