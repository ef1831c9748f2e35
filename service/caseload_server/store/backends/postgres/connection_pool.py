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
"""How long a call waits for a connection."""
IDLE_SECONDS: Final = 60.0
"""How long a connection may be unused until it is closed."""
_GROW_SECONDS: Final = 0.5
"""How long a pool makes do with its connections after the server had none left, until it tries to open one more."""


class ConnectionPool:
    """A bounded number of connections, handed out in the order in which threads asked.

    The thread that needs a connection opens it. So after a failover the first call finds the new primary itself,
    without the back-off of another thread in between. Where the server has no connection left, the pool shrinks to
    those that it has, and grows again later.
    """

    def __init__(self, connect: Callable[[], Connection], max_size: int) -> None:
        """Args: connect, opens a connection; max_size, connections that may be in use at once."""
        self._connect = connect
        self._max_size = max_size
        self._lock = threading.Lock()
        self._permits = max_size
        self._withheld = 0
        """Permits that nobody gets, because the server has no connection for them."""
        self._grow_at = 0.0
        """When one of them may be tried again, by time.monotonic()."""
        self._open = 0
        """Connections, idle or in use."""
        self._waiters: deque[threading.Lock] = deque()
        self._idle: deque[tuple[Connection, float]] = deque()
        """Each with the time.monotonic() since when it is idle, the longest first."""
        self._closed = False
        self._close_next = False
        self.on_connect_failure: Callable[[bool], None] = lambda _: None
        """Called when no connection could be opened. Takes whether this pool has none at all."""

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
        """Takes a connection back. Closes a broken one and all idle ones, which may be broken too."""
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
        """Closes the idle connections for another pool. Args: urgent, if there is none, closes one after its use."""
        self._close_next = urgent and not self._idle and self._open > 1
        self.close_unused(0)

    def close_unused(self, idle_seconds: float = IDLE_SECONDS) -> None:
        """Closes the connections that were idle for a time, in seconds."""
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
            if self._open == 0:  # nobody will release a connection to those who wait
                self._permits, self._withheld = self._permits + self._withheld, 0
                while self._permits and self._waiters:
                    self._permits -= 1
                    self._waiters.popleft().release()

    def _acquire_permit(self) -> bool:
        """Returns False where none became free in time."""
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
        """Gives up a permit for a while. Releases it and returns False where the pool has no connection to share."""
        with self._lock:
            is_shared = self._open > 0
            if is_shared:
                self._withheld += 1
                self._grow_at = time.monotonic() + _GROW_SECONDS
        if not is_shared:
            self._release_permit()
        return is_shared
