"""Concurrent writers of a SQLite file, at a moment that the test chooses."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caseload_server.store.backends.protocol import Sharing
from caseload_server.store.backends.sqlite.database import SqliteDatabase

from tests.store.backends import batches
from tests.support.waiting import HUNG_SECONDS, join


@contextmanager
def commit_under_way(database: SqliteDatabase) -> Iterator[None]:
    """Holds a writer at the end of its transaction, so that others queue behind it."""
    entered, leave = threading.Event(), threading.Event()

    def tail(_: object, outcomes: list[None]) -> list[None]:
        entered.set()
        assert leave.wait(HUNG_SECONDS)
        return outcomes

    holder = threading.Thread(target=database.write_with_tail, args=(lambda _: None, tail, Sharing()))
    holder.start()
    assert entered.wait(HUNG_SECONDS)
    try:
        yield
    finally:
        leave.set()
        join(holder)


def batch(database: SqliteDatabase, works: Sequence[Callable[[], Any]]) -> list[Any]:
    """Runs all works in one commit, in order. Returns what each returned or raised."""
    return batches.batch(database, works, under_way=commit_under_way)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the write lock."""
    script = (
        "import sys, apsw; c = apsw.Connection(sys.argv[1]); c.execute('BEGIN IMMEDIATE');"
        "print('locked', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            holder.communicate("\n", timeout=HUNG_SECONDS)
