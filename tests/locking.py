"""Holds up every write to a database."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import apsw
import psycopg
from caseload_server.config import is_postgres, sqlite_path


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
