"""Holds up every write to a database."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import apsw
import psycopg
import pytest
from caseload_server.config import is_postgres, sqlite_path
from caseload_server.store.backends.postgres import connection as postgres
from caseload_server.store.backends.postgres import connection_pool
from caseload_server.store.backends.sqlite import database as sqlite

from tests.support.waiting import NEVER_SECONDS


@contextmanager
def holding_the_lock(url: str) -> Iterator[None]:
    """What each write takes, as another process takes it: SQLite's lock, PostgreSQL's row with the counter."""
    if is_postgres(url):
        with psycopg.connect(url) as holder:
            holder.execute("SELECT FROM store FOR UPDATE")
            yield
    else:
        with closing(apsw.Connection(str(sqlite_path(url)))) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")


def wait_for_locks(patch: pytest.MonkeyPatch) -> None:
    """Lets servers that are built in this process wait for a lock as long as a test holds it, and not a few seconds."""
    patch.setattr(sqlite, "_BUSY_TIMEOUT_SECONDS", NEVER_SECONDS)
    patch.setattr(connection_pool, "ACQUIRE_TIMEOUT_SECONDS", NEVER_SECONDS)
    patch.setattr(postgres, "_SESSION_OPTIONS", postgres._SESSION_OPTIONS.replace("lock_timeout=3s", "lock_timeout=0"))
