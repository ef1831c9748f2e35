"""Notices that a file of an open SQLite database was deleted, moved or replaced.

SQLite keeps writing into the files that it opened. Neither another process nor the next start would find those writes.
https://sqlite.org/howtocorrupt.html
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw

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

    def _changed(self) -> str | None:
        for suffix, file, opened in self._opened:  # a loop, because each commit runs it
            if _identity(file) != opened:
                return suffix
        return None

    def is_intact(self) -> bool:
        """Returns whether each file is still the opened one."""
        return self._changed() is None

    def require_log(self) -> None:
        """Raises apsw.CantOpenError if the next start would not find what was just committed."""
        _, file, opened = self._opened[1]
        if _identity(file) != opened:
            raise apsw.CantOpenError

    def fault(self) -> str:
        """Returns what happened to a file, and what to do; empty if nothing happened."""
        suffix = self._changed()
        if suffix is None:
            return ""
        if suffix == "":
            advice = "move it back before you restart the server"
        elif self._is_log_saved:
            advice = "all acknowledged writes are in the database file: restart the server"
        else:
            advice = "move it back, or stop the server with SIGTERM, which saves the last writes"
        return f"the {_SUFFIXES[suffix]} was deleted, moved or replaced while it was open: {advice}"

    def save_log(self, writer: apsw.Connection) -> None:
        """Copies the commits in a lost -wal file into the database file, so that a crash does not lose them.

        Does nothing if no file is lost, if the database file itself is, or if another -wal file has content: the next
        start would replay that one over the copy. Call it again until `fault` says that all writes are saved.

        Args: writer, a connection of this process outside of a transaction. It still has the lost files open.
        """
        changed = self._changed()
        self._is_log_saved = False
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


def _is_empty(file: str) -> bool:
    try:
        return Path(file).stat().st_size == 0
    except FileNotFoundError:
        return True
