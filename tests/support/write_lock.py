"""Blocks every write to a database."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import apsw
import psycopg
import pytest
from caseload_server.config import is_postgres, sqlite_path
from caseload_server.store.backends.postgres import commit_turn, connection_pool, pipeline
from caseload_server.store.backends.postgres import connection as postgres
from caseload_server.store.backends.sqlite import connection as sqlite

from tests.support.waiting import NEVER_SECONDS


@contextmanager
def holding_the_lock(url: str) -> Iterator[None]:
    """Holds the lock that every write needs: SQLite's write lock, or PostgreSQL's store row."""
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
    """Sets the lock timeout of servers in this process above the duration of a test."""
    patch.setattr(sqlite, "_BUSY_TIMEOUT_SECONDS", NEVER_SECONDS)
    patch.setattr(pipeline, "TIMEOUT_SECONDS", NEVER_SECONDS)
    patch.setattr(commit_turn, "_TIMEOUT_SECONDS", NEVER_SECONDS)
    patch.setattr(connection_pool, "ACQUIRE_TIMEOUT_SECONDS", NEVER_SECONDS)
    patch.setitem(postgres.WRITES.defaults, "lock_timeout", "0")
