"""A pool of connections to PostgreSQL. Each connection is used by one thread at a time."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg
from psycopg import pq

from caseload_server.domain import errors
from caseload_server.store.backends.postgres.connection import Connection
from caseload_server.store.backends.protocol import Gauges

ACQUIRE_TIMEOUT_SECONDS: Final = 3.0
"""How long a call waits for a connection, in seconds."""
IDLE_SECONDS: Final = 60.0
"""How long a connection may be unused until it is closed, in seconds."""
_GROW_SECONDS: Final = 0.5
"""How long a pool waits before it tries again to open a connection that the server refused, in seconds."""


class ConnectionPool:
    """A bounded number of connections, handed out in the order in which threads asked.

    The thread that needs a connection opens it. So after a failover the first call finds the new primary itself, and
    does not wait for the back-off of another thread. If the server refuses a further connection, the pool shrinks to
    its open connections, and grows again later.
    """

    def __init__(self, connect: Callable[[], Connection], max_size: int) -> None:
        """Args: connect, opens a connection; max_size, connections that may be in use at once."""
        self._connect = connect
        self._max_size = max_size
        self._lock = threading.Lock()
        self._permits = max_size
        self._withheld = 0
        """Permits that the pool does not hand out, because the server refused connections for them."""
        self._grow_at = 0.0
        """The time.monotonic() at which the pool may try one of them again."""
        self._open = 0
        """Number of connections, idle or in use."""
        self._waiters: deque[threading.Lock] = deque()
        self._idle: deque[tuple[Connection, float]] = deque()
        """Each with the time.monotonic() since which it is idle, the longest idle first."""
        self._closed = False
        self._close_next = False
        self.on_connect_failure: Callable[[bool], None] = lambda _: None
        """Called when a connection could not be opened. Its argument says whether this pool has none at all."""

    def acquire(self) -> Connection:
        """Returns a connection for the calling thread alone. Raises psycopg.Error, StoreBusy, ShuttingDown."""
        failure: psycopg.Error | None = None
        while True:
            if self._closed:
                raise errors.ShuttingDown
            if not self._acquire_permit():
                raise failure or errors.StoreBusy(errors.StoreBusy.POOL_WAIT)
            with suppress(IndexError):
                return self._idle.pop()[0]
            try:
                return self._open_connection()
            except psycopg.OperationalError as error:
                self.on_connect_failure(self._open == 0)
                if not self._withhold_permit():
                    raise
                failure = error
            except BaseException:
                self._release_permit()
                raise

    def _open_connection(self) -> Connection:
        connection = self._connect()
        with self._lock:
            self._open += 1
        return connection

    def release(self, connection: Connection) -> None:
        """Takes a connection back. If it is broken, closes it and all idle connections, which may be broken too."""
        if connection.pgconn.transaction_status != pq.TransactionStatus.IDLE or self._closed:
            self._close(connection)
            self.close_unused(0)
        elif self._close_next:
            self._close_next = False
            self._close(connection)
            self._withhold_permit()
            return
        else:
            self._idle.append((connection, time.monotonic()))
        self._release_permit()

    def discard(self) -> None:
        """Frees the permit of a connection that the caller keeps, so that another may be opened instead."""
        self._count_closed()
        self._release_permit()

    def give_way(self, urgent: bool) -> None:  # noqa: FBT001 - the callback of another pool
        """Closes idle connections, so that another pool can open some.

        Args: urgent, if no connection is idle, closes the next one that is released.
        """
        self._close_next = urgent and not self._idle and self._open > 1
        self.close_unused(0)

    def close_unused(self, idle_seconds: float = IDLE_SECONDS) -> None:
        """Closes the connections that have been idle for at least `idle_seconds`."""
        with suppress(IndexError):
            while time.monotonic() - self._idle[0][1] >= idle_seconds:
                self._close(self._idle.popleft()[0])

    def gauges(self, name: str) -> Gauges:
        """Returns gauges of the connections in use, of their limit, and of the threads that wait for one."""
        labels = {"pool": name}
        return [
            ("pool_connections", labels, lambda: self._max_size - self._permits - self._withheld),
            ("pool_connections_limit", labels, lambda: self._max_size),
            ("pool_waiting", labels, lambda: len(self._waiters)),
        ]

    def close(self) -> None:
        """Closes idle connections now, and the others when they are released."""
        self._closed = True
        self.close_unused(0)

    def _close(self, connection: Connection) -> None:
        connection.close()
        self._count_closed()

    def _count_closed(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0:  # no thread will release a connection to the waiting threads
                self._permits, self._withheld = self._permits + self._withheld, 0
                while self._permits and self._waiters:
                    self._permits -= 1
                    self._waiters.popleft().release()

    def _acquire_permit(self) -> bool:
        """Returns False if no permit became free in time."""
        with self._lock:
            if not self._permits and self._withheld and time.monotonic() >= self._grow_at:
                self._withheld, self._permits = self._withheld - 1, 1
                self._grow_at = time.monotonic() + _GROW_SECONDS
            if self._permits:
                self._permits -= 1
                return True
            waiter = threading.Lock()
            waiter.acquire()
            self._waiters.append(waiter)
        if not waiter.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS):
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                    return False
        return True

    def _release_permit(self) -> None:
        with self._lock:
            if self._waiters:  # the permit passes to the first waiter, before any thread that comes later
                self._waiters.popleft().release()
            else:
                self._permits += 1

    def _withhold_permit(self) -> bool:
        """Withholds a permit for a while. If the pool has no open connection, releases the permit and returns False."""
        with self._lock:
            is_shared = self._open > 0
            if is_shared:
                self._withheld += 1
                self._grow_at = time.monotonic() + _GROW_SECONDS
        if not is_shared:
            self._release_permit()
        return is_shared
