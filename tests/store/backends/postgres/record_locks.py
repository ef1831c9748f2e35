"""The records that a call has locked while it waits for one that another session holds."""

from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from tests.store.backends.postgres.shared_transactions import starting
from tests.support.waiting import eventually, join

WAITING = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
"""Has a row while a session waits for a lock."""

Record = tuple[str, str]
"""Its table and its id."""


def locked_while_held(
    admin: "psycopg.Connection[Any]", records: Iterable[Record], held: Record, call: Callable[[], object]
) -> list[Record]:
    """Runs a call that waits for a held record. Returns the other records that it has locked by then."""
    with admin.transaction():
        admin.execute(f"SELECT FROM {held[0]} WHERE {held[0]}_id = %s FOR UPDATE", [held[1]])
        running = starting(call)
        eventually(lambda: admin.execute(WAITING).rowcount > 0)
        locked = [one for one in records if one != held and not _is_free(admin, *one)]
    join(running)
    return locked


def _is_free(admin: "psycopg.Connection[Any]", table: str, record_id: str) -> bool:
    sql = f"SELECT FROM {table} WHERE {table}_id = %s FOR UPDATE SKIP LOCKED"
    return admin.execute(sql, [record_id]).rowcount == 1
