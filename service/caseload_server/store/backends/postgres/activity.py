"""What PostgreSQL itself is doing, for the metrics: old transactions, lock waits, and how far standbys are behind.

https://www.postgresql.org/docs/current/monitoring-stats.html
"""

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import psycopg

from caseload_server.store.backends.postgres.connection import Connection
from caseload_server.store.backends.postgres.pipeline import query_row
from caseload_server.store.backends.protocol import Gauges

SAMPLE_INTERVAL_SECONDS: Final = 5.0
_TIMEOUT_SECONDS: Final = 2.0
_CLOSE_TIMEOUT_SECONDS: Final = 1.0
_GAUGES: Final = (
    "postgres_oldest_transaction_seconds",
    "postgres_lock_waits",
    "postgres_commits_waiting",
    "postgres_standbys",
    "postgres_replication_lag_bytes",
)
_SAMPLE: Final = b"""
SELECT
    coalesce(extract(epoch FROM max(clock_timestamp() - xact_start)), 0),
    count(*) FILTER (WHERE pid IN (SELECT pid FROM pg_locks WHERE NOT granted)),
    count(*) FILTER (WHERE wait_event = 'SyncRep'),
    (SELECT count(*) FROM pg_stat_replication),
    (SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)) FROM pg_stat_replication)
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type IS DISTINCT FROM 'autovacuum worker'"""
"""One row with the values of _GAUGES. Without pg_monitor, a role sees only the transactions and commit waits of its own
sessions, and no lag. A vacuum may run for hours, so it does not count."""


class ActivitySampler:
    """Samples PostgreSQL on a connection and in a thread of its own, so that no call and no check waits for it.

    While PostgreSQL does not answer, the values are NaN.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """Opens no connection yet."""
        self._connect = connect
        self._connection: Connection | None = None
        self._values = [math.nan] * len(_GAUGES)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample_loop, name="postgres-activity", daemon=True)

    def start(self) -> Gauges:
        """Starts to sample, unless it has. Returns the gauges."""
        if self._thread.ident is None:
            self._thread.start()
        return [(name, {}, partial(self._value, at)) for at, name in enumerate(_GAUGES)]

    def close(self) -> None:
        """Stops sampling, and closes the connection. Waits a moment for PostgreSQL."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT_SECONDS)

    def _value(self, at: int) -> float:
        return self._values[at]

    def _sample_loop(self) -> None:
        while not self._stopped.is_set():
            try:
                self._sample()
            except Exception:  # noqa: BLE001 - the thread must survive any failure of the database
                self._values = [math.nan] * len(_GAUGES)
                self._disconnect()
            self._stopped.wait(SAMPLE_INTERVAL_SECONDS)
        self._disconnect()

    def _sample(self) -> None:
        self._connection = self._connection or self._connect()
        row = query_row(self._connection.pgconn, _SAMPLE, _TIMEOUT_SECONDS)
        self._values = [math.nan if value is None else float(value) for value in row]

    def _disconnect(self) -> None:
        if self._connection:
            with suppress(psycopg.Error):
                self._connection.close()
        self._connection = None
