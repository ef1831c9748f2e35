"""The connection that an instance keeps open. It checks the database, and holds the lock that excludes imports."""

import time
from collections.abc import Callable
from typing import Final

import psycopg
from psycopg import pq

from caseload_server.domain import errors
from caseload_server.store.backends.migrations import SERVED, SchemaError
from caseload_server.store.backends.postgres.connection import Connection
from caseload_server.store.backends.postgres.error_text import one_line
from caseload_server.store.backends.postgres.pipeline import query_row
from caseload_server.store.portability.content import SEARCH_TABLES, TABLES

_IN_USE_KEY: Final = 0x43534C55
"""Key of the advisory lock ("CSLU") that each instance holds shared, and an import or a migration exclusively.
https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS"""
_LOCK: Final = f"({_IN_USE_KEY}, hashtext(current_schema()))"  # another schema can hold another store
_SHARE: Final = f"SELECT pg_try_advisory_lock_shared{_LOCK}".encode()
_TAKE_ALONE: Final = f"SELECT pg_try_advisory_xact_lock{_LOCK}".encode()
_DISCONNECT_SECONDS: Final = 1.0
"""How long PostgreSQL may keep the lock of a closed connection, in seconds."""
_CHECK_TIMEOUT_SECONDS: Final = 2.0
_WRITTEN: Final = ",".join([*(table.name for table in TABLES), *SEARCH_TABLES])
_CHECK: Final = f"""
SELECT current_setting('transaction_read_only'), EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event = 'SyncRep' AND now() - state_change > interval '2s'), (
    SELECT min(name) FROM unnest('{{{_WRITTEN}}}'::text[]) AS name
    WHERE row_security_active(to_regclass(name)) OR (
        SELECT count(*) FILTER (WHERE has_table_privilege(to_regclass(name), privilege)) < count(*)
        FROM unnest('{{SELECT,INSERT,UPDATE,DELETE}}'::text[]) AS privilege))""".encode()
"""Shows whether the server rejects writes, whether commits of any instance wait for a standby, and the name of a table
that is missing or whose rows the role may not all read and write.
https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-ACCESS"""
_UNUSABLE: Final = "the role may not read and write all rows of a table, or it is missing:"
_IDENTITY: Final = b"SELECT (SELECT store_id FROM store), (SELECT encode(secret, 'hex') FROM store)"
_REPLACED: Final = "the database holds another store than at the start: restart the instance"


class StoreCheck:
    """Checks the database on a connection of its own. After a loss it connects again and takes the lock again.

    Until it has the lock again, `run` raises, because an import may have begun meanwhile. If one has ended, `run`
    raises from then on, because the instance has the secret that it read at its start.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """Opens no connection yet."""
        self._connect = connect
        self._connection: Connection | None = None
        self._identity: list[bytes | None] = []
        self.store_is_replaced = False
        """Whether the database got the id or the secret of another store. It does not become False again."""

    def open(self) -> None:
        """Connects, takes the shared lock and checks the database.

        Raises SchemaError while an import runs, StoreUnavailable, psycopg.Error.
        """
        self._connection = self._open()
        _ask(self._connection.pgconn)

    def _open(self) -> Connection:
        connection = self._connect()
        try:
            share_lock(connection)
            self._compare_identity(connection.pgconn)
        except BaseException:
            connection.close()
            raise
        return connection

    def _compare_identity(self, pgconn: pq.abc.PGconn) -> None:
        """Records the store that the first check finds. Raises StoreUnavailable if a later one finds another."""
        found = query_row(pgconn, _IDENTITY, _CHECK_TIMEOUT_SECONDS)
        self._identity = self._identity or found
        self.store_is_replaced = found != self._identity
        self._refuse_replaced()

    def _refuse_replaced(self) -> None:
        if self.store_is_replaced:
            raise errors.StoreUnavailable(detail=_REPLACED)

    def run(self) -> bool:
        """Returns whether commits wait for a standby. Raises StoreUnavailable."""
        self._refuse_replaced()
        try:
            self._connection = self._connection or self._open()
            self._compare_identity(self._connection.pgconn)  # a dump can be restored under a running instance
            return _ask(self._connection.pgconn)
        except errors.StoreUnavailable as refusal:
            failure = refusal  # a session stays read-only when its database no longer is, so the next one is new
        except SchemaError:
            failure = errors.StoreUnavailable(detail="an import or a migration is running")
        except psycopg.Error as error:
            failure = errors.StoreUnavailable(error.sqlstate or "", one_line(error))
        self.close()
        raise failure

    def close(self) -> None:
        """Closes the connection, which releases the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def share_lock(connection: Connection) -> None:
    """Takes the shared lock. Raises SchemaError while an import or a migration runs."""
    [(is_shared,)] = connection.execute(_SHARE).fetchall()
    if not is_shared:
        raise SchemaError("an import or a migration is running: start when it has ended")


def _ask(pgconn: pq.abc.PGconn) -> bool:
    """Returns whether commits wait for a standby. Raises StoreUnavailable, psycopg.Error."""
    is_read_only, is_waiting, unusable = query_row(pgconn, _CHECK, _CHECK_TIMEOUT_SECONDS)
    if is_read_only == b"on":
        raise errors.StoreUnavailable("25006", "the database accepts no writes")
    if unusable:
        raise errors.StoreUnavailable("42501", f"{_UNUSABLE} {unusable.decode()}")
    return is_waiting == b"t"


def take_alone(connection: Connection) -> None:
    """Takes the lock exclusively until the transaction ends. Raises SchemaError while an instance holds it."""
    deadline = time.monotonic() + _DISCONNECT_SECONDS
    while not connection.execute(_TAKE_ALONE).fetchall()[0][0]:
        if time.monotonic() > deadline:
            raise SchemaError(SERVED)
        time.sleep(0.02)
