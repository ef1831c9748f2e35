"""Detects whether commits of a cluster wait for a standby, with a test commit."""

from contextlib import closing

from psycopg import Connection

from tests.support.postgres.cluster import Cluster
from tests.support.waiting import eventually

_WAITS = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
_LIVES = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
_COMMIT = b"SELECT pg_logical_emit_message(true, 'probe', '')"


def await_commits(cluster: Cluster, *, waiting: bool) -> None:
    """Waits until a change of synchronous_standby_names has reached every process of the cluster."""
    eventually(lambda: _commit_waits(cluster) == waiting)


def _commit_waits(cluster: Cluster) -> bool:
    with closing(cluster.connect()) as watching, closing(cluster.connect()) as probe:
        probe.execute("SET synchronous_commit = on")
        probe.pgconn.send_query(_COMMIT)
        pid = probe.info.backend_pid

        def seen() -> str:
            if watching.execute(_WAITS, [pid]).fetchall():
                return "waits"
            return "" if _is_busy(probe) else "done"

        found = eventually(seen)
        watching.execute("SELECT pg_terminate_backend(%s)", [pid])
        eventually(lambda: not watching.execute(_LIVES, [pid]).fetchall())  # otherwise a test can take it for its own
    return found == "waits"


def _is_busy(connection: Connection[tuple[object, ...]]) -> bool:
    connection.pgconn.consume_input()
    return bool(connection.pgconn.is_busy())
