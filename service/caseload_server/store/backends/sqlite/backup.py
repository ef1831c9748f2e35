"""Copies a SQLite file while others read and write it: https://sqlite.org/backup.html"""

import secrets
from contextlib import closing
from pathlib import Path
from typing import Final

from caseload_server.store.atomic_file import atomic_file
from caseload_server.store.backends.migrations import SchemaError, migrations
from caseload_server.store.backends.sqlite.connection import connect
from caseload_server.store.backends.sqlite.migrate import pending
from caseload_server.store.backends.sqlite.reading import reading
from caseload_server.store.portability.export import Progress

_PAGES_PER_STEP: Final = 1024


def _ignore_progress(_: int) -> None:
    pass


def backup(source: Path, target: Path, progress: Progress = _ignore_progress) -> int:
    """Copies one revision of a database into a new file. Returns the number of the revision.

    Args: progress, is called with bytes. Raises SchemaError (the source is no caseload database, or damaged),
    FileExistsError, apsw.Error, OSError.
    """
    return _copy(source, target, progress, is_restore=False)


def restore(source: Path, target: Path, progress: Progress = _ignore_progress) -> int:
    """Makes a database from a backup, with a new store id: it rejects revisions of the old one.

    A -wal file of an earlier database counts as existing: SQLite would replay it into the new one. Raises as `backup`.
    """
    return _copy(source, target, progress, is_restore=True)


def _copy(source: Path, target: Path, progress: Progress, *, is_restore: bool) -> int:
    with atomic_file(target) as partial_file:
        if pending(source) == migrations("sqlite"):
            raise SchemaError("it holds no caseload database")
        return _fill(source, partial_file, progress, is_restore=is_restore)


def _fill(source: Path, target: Path, progress: Progress, *, is_restore: bool) -> int:
    with reading(source) as origin, closing(connect(target, create=True)) as copy:
        # One transaction from the first read on. Without it the copy would restart after each write of others.
        origin.execute("BEGIN")
        list(origin.execute("SELECT 1 FROM sqlite_schema LIMIT 1"))
        page_bytes = origin.pragma("page_size")
        with copy.backup("main", origin, "main") as pages:
            while not pages.done:
                before = pages.page_count - pages.remaining
                pages.step(_PAGES_PER_STEP)
                progress((pages.page_count - pages.remaining - before) * page_bytes)
        if list(copy.execute("PRAGMA integrity_check")) != [("ok",)]:
            raise SchemaError("it is damaged")
        if is_restore:
            copy.execute("UPDATE store SET store_id = ?", (secrets.token_hex(6),))
        else:
            copy.pragma("journal_mode", "delete")  # a single plain file that any reader can open
        [(head,)] = copy.execute("SELECT head_revision FROM store")
        return int(head)
