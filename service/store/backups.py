"""Copies of a SQLite file, made while others read and write it: https://sqlite.org/backup.html"""

import os
import secrets
from pathlib import Path

import apsw

from service.store import migrate, sqlite


def backup(source: Path, target: Path) -> int:
    """Copies the database as it is at one revision, which is returned, into a file that does not exist yet.

    Raises SchemaError (the source is not ours), FileExistsError, apsw.Error.
    """
    migrate.pending(source)
    return _copy(source, target, is_restore=False)


def restore(source: Path, target: Path) -> int:
    """Makes a database of a copy, under a new store id: revisions of the old one are refused and not misread.

    Raises SchemaError (the copy is not ours or damaged), FileExistsError, apsw.Error.
    """
    migrate.pending(source)
    return _copy(source, target, is_restore=True)


def _copy(source: Path, target: Path, *, is_restore: bool) -> int:
    if target.exists():
        raise FileExistsError
    part = target.with_name(f"{target.name}.part")
    try:
        head = _fill(source, part, is_restore=is_restore)
        os.link(part, target)  # unlike a rename, refuses to replace
    finally:
        for leftover in (part, part.with_name(f"{part.name}-wal"), part.with_name(f"{part.name}-shm")):
            leftover.unlink(missing_ok=True)
    return head


def _fill(source: Path, part: Path, *, is_restore: bool) -> int:
    part.unlink(missing_ok=True)  # of a copy that was interrupted
    origin = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READWRITE)
    copy = sqlite.connect(part, create=True)
    try:
        with copy.backup("main", origin, "main") as pages:
            pages.step()  # all at once: one state of the database, whatever others write meanwhile
        if list(copy.execute("PRAGMA integrity_check")) != [("ok",)]:
            raise migrate.SchemaError("the copy is damaged")
        if is_restore:
            copy.execute("UPDATE store SET store_id = ?", (secrets.token_hex(6),))
        else:
            copy.pragma("journal_mode", "delete")  # one plain file, whoever reads it
        [(head,)] = copy.execute("SELECT head_revision FROM store")
        return int(head)
    finally:
        copy.close()
        origin.close()
