"""Copies of a SQLite file, made while others read and write it: https://sqlite.org/backup.html"""

import secrets
from pathlib import Path

import apsw

from service.store import sqlite
from service.store.migrations import SchemaError, migrations
from service.store.new_files import new_file
from service.store.sqlite_migrate import pending


def backup(source: Path, target: Path) -> int:
    """Copies the database as it is at one revision, which is returned, into a file that does not exist yet.

    Raises SchemaError (the source is not ours, or damaged), FileExistsError, apsw.Error, OSError.
    """
    return _copy(source, target, is_restore=False)


def restore(source: Path, target: Path) -> int:
    """Makes a database of a copy, under a new store id: revisions of the old one are refused and not misread.

    Raises as `backup`. A -wal file of an earlier database counts as existing: SQLite would play it into the new one.
    """
    return _copy(source, target, is_restore=True)


def _copy(source: Path, target: Path, *, is_restore: bool) -> int:
    with new_file(target) as part:
        if pending(source) == migrations("sqlite"):
            raise SchemaError("it holds no caseload database")
        return _fill(source, part, is_restore=is_restore)


def _fill(source: Path, part: Path, *, is_restore: bool) -> int:
    origin = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READWRITE)  # or, where it must be, read-only
    copy = sqlite.connect(part, create=True)
    try:
        with copy.backup("main", origin, "main") as pages:
            pages.step()  # all at once: one state of the database, whatever others write meanwhile
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
