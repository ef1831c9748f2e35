"""A disk that fails on demand: a VFS over the real one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import apsw

NAME: Final = "faults"


def allow(_operation: str, _file: str) -> None:
    """A disk that works."""


def refuse(operation: str, file: str, error: apsw.Error) -> Callable[[str, str], None]:
    """A disk that fails one operation ("read", "write", "sync") on the database's "file" or "log"."""

    def before(asked: str, of: str) -> None:
        if (asked, of) == (operation, file):
            raise error

    return before


class Disk(apsw.VFS):
    """Calls `before` ahead of every read, write and sync, with the operation and the file; what it raises fails it."""

    def __init__(self) -> None:
        super().__init__(NAME, "unix")
        self.before: Callable[[str, str], None] = allow

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name or ""
        self._kind = "log" if path.endswith("-wal") else "file"
        self._disk = disk
        super().__init__("unix", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        self._disk.before("read", self._kind)
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.before("write", self._kind)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._disk.before("sync", self._kind)
        super().xSync(flags)


@contextmanager
def faulty_disk() -> Iterator[Disk]:
    """Opens every database in the with block on this disk."""
    default = apsw.vfs_names()[0]
    disk = Disk()
    apsw.set_default_vfs(NAME)
    try:
        yield disk
    finally:
        apsw.set_default_vfs(default)
        apsw.unregister_vfs(NAME)
