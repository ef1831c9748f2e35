"""Copies of a SQLite file, made while others read and write it: https://sqlite.org/backup.html"""

import secrets
from pathlib import Path
from typing import Final

import apsw

from caseload_server.store.atomic_file import new_file
from caseload_server.store.backends.migrations import SchemaError, migrations
from caseload_server.store.backends.sqlite import database as sqlite
from caseload_server.store.backends.sqlite.migrate import pending
from caseload_server.store.portability.export import Progress

_PAGES_AT_ONCE: Final = 1024


def _unseen(_: int) -> None:
    pass


def backup(source: Path, target: Path, progress: Progress = _unseen) -> int:
    """Copies the database as it is at one revision, which is returned, into a file that does not exist yet.

    progress is of bytes. Raises SchemaError (the source is not ours, or damaged), FileExistsError, apsw.Error, OSError.
    """
    return _copy(source, target, progress, is_restore=False)


def restore(source: Path, target: Path, progress: Progress = _unseen) -> int:
    """Makes a database of a copy, under a new store id: revisions of the old one are refused and not misread.

    Raises as `backup`. A -wal file of an earlier database counts as existing: SQLite would play it into the new one.
    """
    return _copy(source, target, progress, is_restore=True)


def _copy(source: Path, target: Path, progress: Progress, *, is_restore: bool) -> int:
    with new_file(target) as part:
        if pending(source) == migrations("sqlite"):
            raise SchemaError("it holds no caseload database")
        return _fill(source, part, progress, is_restore=is_restore)


def _fill(source: Path, part: Path, progress: Progress, *, is_restore: bool) -> int:
    origin = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READWRITE)  # or, where it must be, read-only
    copy = sqlite.connect(part, create=True)
    try:
        # One state of the database, held from the first read on: else each write of others would begin the copy anew.
        origin.execute("BEGIN")
        list(origin.execute("SELECT 1 FROM sqlite_schema LIMIT 1"))
        page_bytes = origin.pragma("page_size")
        with copy.backup("main", origin, "main") as pages:
            while not pages.done:
                before = pages.page_count - pages.remaining
                pages.step(_PAGES_AT_ONCE)
                progress((pages.page_count - pages.remaining - before) * page_bytes)
        if list(copy.execute("PRAGMA integrity_check")) != [("ok",)]:
            raise SchemaError("it is damaged")
        if is_restore:
            copy.execute("UPDATE store SET store_id = ?", (secrets.token_hex(6),))
        else:
            copy.pragma("journal_mode", "delete")  # one plain file, whoever reads it
        [(head,)] = copy.execute("SELECT head_revision FROM store")
        return int(head)
    finally:
        copy.close()
        origin.close()
