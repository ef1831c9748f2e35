"""`caseload`, for which kill -9 acts like a power cut: unsynced writes are lost.

A kill alone keeps the system's page cache, so a missing fsync would not show. Here writes stay in the memory of the
process until SQLite syncs the file, and die with it.
CASELOAD_TEST_SYNCHRONOUS replaces the store's own setting.
CASELOAD_TEST_REORDER=1 lets every second write through at once, as a disk does that writes in an order of its own.
"""

import os
import random
import threading
from typing import Any

import apsw
from caseload_server.commands import main
from caseload_server.store.backends.sqlite import connection as sqlite

_REORDER = "CASELOAD_TEST_REORDER" in os.environ
_BASE = apsw.vfs_names()[0]  # the system's VFS, read before this one becomes the default
_chance = random.Random(1)


class Content:
    """A file as the process sees it, shared by its connections, and the parts not yet on the disk."""

    def __init__(self, seen: bytes) -> None:
        self.lock = threading.Lock()
        self.seen = bytearray(seen)
        self.unsynced: list[tuple[int, int]] = []
        self.cut_to: int | None = None

    def write(self, data: bytes, offset: int) -> None:
        missing = offset - len(self.seen)
        if missing > 0:
            self.seen += bytes(missing)
        self.seen[offset : offset + len(data)] = data
        self.unsynced.append((offset, offset + len(data)))

    def cut(self, size: int) -> None:
        del self.seen[size:]
        self.cut_to = size if self.cut_to is None else min(size, self.cut_to)


_contents: dict[str, Content] = {}


class UnsyncedFile(apsw.VFSFile):
    """A file whose writes reach the disk on sync. Locks and shared memory use the real file."""

    def __init__(self, name: str | apsw.URIFilename, flags: list[int]) -> None:
        super().__init__(_BASE, name, flags)
        path = name if isinstance(name, str) else name.filename()
        if path not in _contents:
            size = super().xFileSize()
            _contents[path] = Content(super().xRead(size, 0) if size else b"")
        self._content = _contents[path]

    def xRead(self, amount: int, offset: int) -> bytes:
        with self._content.lock:
            return bytes(self._content.seen[offset : offset + amount])

    def xFileSize(self) -> int:
        with self._content.lock:
            return len(self._content.seen)

    def xWrite(self, data: Any, offset: int) -> None:
        with self._content.lock:
            self._content.write(bytes(data), offset)
            if _REORDER and _chance.random() < 0.5:
                super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        with self._content.lock:
            self._content.cut(newsize)

    def xSync(self, flags: int) -> None:
        with self._content.lock:
            if self._content.cut_to is not None:
                super().xTruncate(self._content.cut_to)
            for start, end in self._content.unsynced:
                super().xWrite(bytes(self._content.seen[start:end]), start)
            self._content.unsynced, self._content.cut_to = [], None
            super().xSync(flags)


class PowerLossDisk(apsw.VFS):
    """The default VFS for every connection of the process."""

    def __init__(self) -> None:
        super().__init__("power_loss", _BASE, makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        # A temporary file has no name and needs no protection.
        return apsw.VFSFile(_BASE, name, flags) if name is None else UnsyncedFile(name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: FBT001 - apsw calls it so
        super().xDelete(filename, syncdir)
        _contents.pop(filename, None)


if __name__ == "__main__":
    disk = PowerLossDisk()
    sqlite.SYNCHRONOUS = os.environ.get("CASELOAD_TEST_SYNCHRONOUS", sqlite.SYNCHRONOUS)  # type: ignore[misc]
    main.main()
