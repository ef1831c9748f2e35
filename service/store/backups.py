"""Copies of a SQLite file, made while others read and write it: https://sqlite.org/backup.html"""

import os
import secrets
import tempfile
from pathlib import Path

import apsw

from service.store import sqlite
from service.store.migrations import SchemaError, migrations
from service.store.sqlite_migrate import pending

_COMPANIONS = ("", "-wal", "-shm", "-journal")


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
    if any(_companion(target, end).exists() for end in _COMPANIONS):
        raise FileExistsError
    if pending(source) == migrations("sqlite"):
        raise SchemaError("it holds no caseload database")
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    part = Path(name)
    try:
        head = _fill(source, part, is_restore=is_restore)
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # ours, or FileExistsError
        part.replace(target)
    finally:
        for end in _COMPANIONS:
            _companion(part, end).unlink(missing_ok=True)
    _sync(target.parent)
    return head


def _companion(file: Path, end: str) -> Path:
    return file.with_name(f"{file.name}{end}")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


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
