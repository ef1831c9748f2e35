"""Empty migrated databases, a new one for each test in a few milliseconds.

Databases are emptied with DELETE and reused. That is much faster than a new database, or than TRUNCATE, which creates
new files for every table and index.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg

from tests.support.postgres.cluster import Server

_MAX_USES = 50
"""How often a database is used: deleted rows still take space."""
_DISCONNECT_SECONDS = 0.5

_TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
_OTHER_CONNECTIONS = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
_SCHEMA = """
SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_attribute), (SELECT count(*) FROM pg_constraint),
    (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_proc)
"""


class _PooledDatabase(NamedTuple):
    """A database of the pool, and the connection that empties it."""

    name: str
    connection: "psycopg.Connection[tuple[Any, ...]]"
    uses: int = 0


class Databases:
    """A pool of migrated test databases; the with block drops all of them at its end."""

    def __init__(self, server: Server, prepare: Callable[[str], object]) -> None:
        """Args: prepare, migrates the empty database at a URL; called once, for the template."""
        self._server = server
        self._prepare = prepare
        self._prefix = f"caseload_test_{os.getpid()}_{secrets.token_hex(4)}"
        self._created_count = 0
        self._free: list[_PooledDatabase] = []

    def __enter__(self) -> Self:
        self._template = f"{self._prefix}_template"
        url = self._server.create_database(self._template)
        try:
            self._prepare(url)
            with self._server.connect(self._template) as connection:
                tables = [name for (name,) in connection.execute(_TABLES)]
                for name in tables:  # statistics of the moment when a table was empty would lead to slow plans
                    connection.execute(f"ALTER TABLE {name} SET (autovacuum_enabled = off)".encode())
                self._schema = connection.execute(_SCHEMA).fetchone()
        except BaseException:
            self._server.drop_database(self._template)
            raise
        # One statement: foreign keys are checked at its end, so the order does not matter.
        emptied = [f"{name}_rows AS (DELETE FROM {name})" for name in tables if name not in ("migration", "store")]
        self._empty = f"""
            WITH {", ".join(emptied)}
            UPDATE store SET store_id = %s, secret = %s, head_revision = 0, oldest_revision = 0,
                chain_revision = 0, head_hash = DEFAULT, oldest_hash = DEFAULT, versions_revision = 0, versions_us = 0
            """.encode()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pooled in self._free:
            self._drop(pooled)
        self._server.drop_database(self._template)

    @contextmanager
    def acquire(self) -> Iterator[str]:
        """Yields the URL of an empty migrated database with a store id and a secret of its own.

        The database is dropped, not reused, if a client is still connected or its schema has changed.
        """
        pooled = self._free.pop() if self._free else self._create()
        try:
            yield self._server.url(pooled.name)
        finally:
            emptied = False
            with suppress(psycopg.Error):  # e.g. a test has closed the connection
                emptied = pooled.uses < _MAX_USES and self._try_empty(pooled.connection)
            if emptied:
                self._free.append(pooled._replace(uses=pooled.uses + 1))
            else:
                self._drop(pooled)

    def _create(self) -> _PooledDatabase:
        self._created_count += 1
        name = f"{self._prefix}_{self._created_count}"
        self._server.create_database(name, self._template)
        pooled = _PooledDatabase(name, self._server.connect(name))
        assert self._try_empty(pooled.connection)
        return pooled

    def _try_empty(self, connection: "psycopg.Connection[tuple[Any, ...]]") -> bool:
        """Empties the database. Returns False if another client is connected or the schema has changed."""
        deadline = time.monotonic() + _DISCONNECT_SECONDS
        while connection.execute(_OTHER_CONNECTIONS).fetchall():  # a closed connection disappears after a moment
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        if connection.execute(_SCHEMA).fetchone() != self._schema:
            return False
        return connection.execute(self._empty, (secrets.token_hex(6), secrets.token_bytes(32))).rowcount == 1

    def _drop(self, pooled: _PooledDatabase) -> None:
        pooled.connection.close()
        self._server.drop_database(pooled.name)
