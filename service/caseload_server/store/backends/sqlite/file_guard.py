"""Notices that a file of an open SQLite database was deleted, moved or replaced.

SQLite keeps writing into the files that it opened. Neither another process nor the next start would find those writes.
https://sqlite.org/howtocorrupt.html
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw

_WAL_MAGIC: Final = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
"""The first bytes of a -wal file that is not empty. https://sqlite.org/fileformat2.html#the_write_ahead_log"""
_SUFFIXES: Final = {"": "database file", "-wal": "-wal file", "-shm": "-shm file"}


class FileGuard:
    """Compares the files at their paths with those that were opened."""

    def __init__(self, path: Path, name: Path) -> None:
        """Call it after the first read, which opens all three files.

        Args: path, of the database, without symbolic links; name, the path at which the next start looks for it.
        """
        self._paths = {suffix: f"{path}{suffix}" if suffix else str(name) for suffix in _SUFFIXES}
        self._opened = [(suffix, file, _identity(file)) for suffix, file in self._paths.items()]
        self._is_log_saved = False
        self._log = _open(self._paths["-wal"])  # SQLite locks the other two, and closing a file drops its locks

    def close(self) -> None:
        """Closes what it has opened."""
        if self._log is not None:
            os.close(self._log)
        self._log = None

    def has_damaged_log(self) -> bool:
        """Returns whether another program emptied or overwrote the -wal file. A commit then leaves a gap before it."""
        return self._log is not None and os.pread(self._log, 4, 0) not in (b"", *_WAL_MAGIC)

    def _changed(self) -> str | None:
        for suffix, file, opened in self._opened:  # a loop, because each commit runs it
            if _identity(file) != opened:
                return suffix
        return "-wal" if self.has_damaged_log() else None

    def is_intact(self) -> bool:
        """Returns whether each file is still the opened one."""
        return self._changed() is None

    def require_log(self) -> None:
        """Raises apsw.CantOpenError if the next start would not find what was just committed."""
        _, file, opened = self._opened[1]
        if _identity(file) != opened or self.has_damaged_log():
            raise apsw.CantOpenError

    def fault(self) -> str:
        """Returns what happened to a file, and what to do; empty if nothing happened."""
        suffix = self._changed()
        if suffix is None:
            return ""
        if self.has_damaged_log():
            return (
                "the -wal file was emptied or overwritten while it was open, and its writes are lost: restore a backup"
            )
        if suffix == "":
            advice = "move it back before you restart the server"
        elif self._is_log_saved:
            advice = "all acknowledged writes are in the database file: restart the server"
        else:
            advice = "move it back, or stop the server with SIGTERM, which saves the last writes"
        return f"the {_SUFFIXES[suffix]} was deleted, moved or replaced while it was open: {advice}"

    def save_log(self, writer: apsw.Connection) -> None:
        """Copies the commits in a lost -wal file into the database file, so that a crash does not lose them.

        Does nothing if no file is lost, if the database file itself is, if the file has gaps, or if another -wal file
        has content: the next start would replay that one over the copy. Call it again until `fault` says that all
        writes are saved.

        Args: writer, a connection of this process outside of a transaction. It still has the lost files open.
        """
        changed = self._changed()
        self._is_log_saved = False
        if self.has_damaged_log():
            return
        if changed and (changed == "-shm" or _is_empty(self._paths["-wal"])):
            with suppress(apsw.Error):
                in_log, copied = writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._is_log_saved = in_log == copied


def _identity(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - a Path takes twice as long, and each commit asks several times
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open(file: str) -> int | None:
    with suppress(OSError):
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    return None


def _is_empty(file: str) -> bool:
    try:
        return Path(file).stat().st_size == 0
    except FileNotFoundError:
        return True
