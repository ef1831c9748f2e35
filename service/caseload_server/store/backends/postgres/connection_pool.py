"""A pool of connections to PostgreSQL. Each connection is used by one thread at a time."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from psycopg import pq

from caseload_server.domain import errors
from caseload_server.store.backends.postgres.connection import Connection
from caseload_server.store.backends.protocol import Gauges

ACQUIRE_TIMEOUT_SECONDS: Final = 3.0
"""How long a call waits for a connection."""


class ConnectionPool:
    """A bounded number of connections, handed out in the order in which threads asked.

    The thread that needs a connection opens it. So after a failover the first call finds the new primary itself,
    without the back-off of another thread in between.
    """

    def __init__(self, connect: Callable[[], Connection], max_size: int) -> None:
        """Args: connect, opens a connection; max_size, connections that may be in use at once."""
        self._connect = connect
        self._max_size = max_size
        self._lock = threading.Lock()
        self._permits = max_size
        self._waiters: deque[threading.Lock] = deque()
        self._idle: list[Connection] = []
        self._closed = False

    def acquire(self) -> Connection:
        """Returns a connection for the calling thread alone. Raises psycopg.Error, StoreBusy, ShuttingDown."""
        if self._closed:
            raise errors.ShuttingDown
        self._acquire_permit()
        try:
            with suppress(IndexError):
                return self._idle.pop()
            return self._connect()
        except BaseException:
            self._release_permit()
            raise

    def release(self, connection: Connection) -> None:
        """Takes a connection back. Closes a broken one and all idle ones, which may be broken too."""
        if connection.pgconn.transaction_status == pq.TransactionStatus.IDLE and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()
            self._close_idle()
        self._release_permit()

    def discard(self) -> None:
        """Frees the permit of a connection that the caller keeps, so that another may be opened instead."""
        self._release_permit()

    def gauges(self, name: str) -> Gauges:
        """Returns gauges of the connections in use, of their limit, and of the threads that wait for one."""
        labels = {"pool": name}
        return [
            ("pool_connections", labels, lambda: self._max_size - self._permits),
            ("pool_connections_limit", labels, lambda: self._max_size),
            ("pool_waiting", labels, lambda: len(self._waiters)),
        ]

    def close(self) -> None:
        """Closes idle connections now, and the others when they are released."""
        self._closed = True
        self._close_idle()

    def _acquire_permit(self) -> None:
        with self._lock:
            if self._permits:
                self._permits -= 1
                return
            waiter = threading.Lock()
            waiter.acquire()
            self._waiters.append(waiter)
        if not waiter.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS):
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                    raise errors.StoreBusy(errors.StoreBusy.no_connection)

    def _release_permit(self) -> None:
        with self._lock:
            if self._waiters:  # the permit passes to the first waiter, before any thread that comes later
                self._waiters.popleft().release()
            else:
                self._permits += 1

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()
