"""Connections to PostgreSQL, lent to one thread at a time."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg
from psycopg import pq

from caseload_server.domain import errors
from caseload_server.store.backends.protocol import Gauges, Row

Connection = psycopg.Connection[Row]
PLACE_SECONDS: Final = 3.0
"""How long a call waits for one."""


class Connections:
    """A fixed number of connections, each opened by the thread that first needs it, lent in the order of asking.

    So after a failover the first call finds the new primary by itself, with no other thread's back-off in between.
    """

    def __init__(self, open_one: Callable[[], Connection], count: int) -> None:
        self._open_one = open_one
        self._count = count
        self._lock = threading.Lock()
        self._places = count
        self._waiting: deque[threading.Lock] = deque()
        self._free: list[Connection] = []
        self._closed = False

    def take(self) -> Connection:
        """One for this thread alone. Raises psycopg.Error, StoreBusy, ShuttingDown."""
        if self._closed:
            raise errors.ShuttingDown
        self._take_place()
        try:
            with suppress(IndexError):
                return self._free.pop()
            return self._open_one()
        except BaseException:
            self._give_place()
            raise

    def give(self, connection: Connection) -> None:
        """Takes it back. One that is not as it was is closed, and the idle ones too: they may be lost as well."""
        if connection.pgconn.transaction_status == pq.TransactionStatus.IDLE and not self._closed:
            self._free.append(connection)
        else:
            connection.close()
            self._drop()
        self._give_place()

    def gauges(self, name: str) -> Gauges:
        """Those lent, all that may be, and the threads that wait for one."""
        pool = {"pool": name}
        return [
            ("pool_connections", pool, lambda: self._count - self._places),
            ("pool_connections_limit", pool, lambda: self._count),
            ("pool_waiting", pool, lambda: len(self._waiting)),
        ]

    def forget(self) -> None:
        """Takes nothing back: another may be opened instead."""
        self._give_place()

    def close(self) -> None:
        """Closes the idle ones now, and the others when they are given back."""
        self._closed = True
        self._drop()

    def _take_place(self) -> None:
        with self._lock:
            if self._places:
                self._places -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if not turn.acquire(timeout=PLACE_SECONDS):
            with self._lock:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                    raise errors.StoreBusy(errors.StoreBusy.no_connection)

    def _give_place(self) -> None:
        with self._lock:
            if self._waiting:  # handed on, so that none that came later gets it first
                self._waiting.popleft().release()
            else:
                self._places += 1

    def _drop(self) -> None:
        with suppress(IndexError):
            while True:
                self._free.pop().close()
