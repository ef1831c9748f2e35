"""Checks that the files of a SQLite database belong together, before a process opens them.

While a server runs, the last commits are only in its -wal file. Without that file, the database file looks sound but
is old. The locks of other processes and the header of the -shm file show what SQLite itself does not check:
https://sqlite.org/walformat.html, https://sqlite.org/lockingv3.html
"""

import fcntl
import os
import struct
import time
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from caseload_server.store.backends.migrations import SchemaError

_FLOCK: Final = struct.Struct("@hhqqi4x")
"""The struct flock of 64-bit Linux: type, whence, start, length, process."""
_SHARED_LOCK: Final = (0x40000002, 510)
"""First byte and size of the range of the database file that every connection locks, in WAL mode until it closes."""
_SHM_LOCK: Final = (128, 1)
"""The same for the -shm file."""
_RETRY_SECONDS: Final = 1.0
"""How long a fault must last. Another process opens its files one after the other, and may be restarting its log."""
_WAL_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_UNSAVED: Final = (
    "its last commits were in a -wal file that is missing, emptied or overwritten: move it back, or restore a backup"
)
_FOREIGN: Final = "another process has the file open with other -wal or -shm files: stop or restart it first"
_STRAY: Final = "a -wal file of another database is beside it: move that file away"
_ORPHANED: Final = "the file is missing or empty, but its -wal file has commits: move it back, or move that file away"
_LINKED: Final = "has a second name (a hard link), under which SQLite keeps another log: remove one, or copy the file"


class _LogIndex(NamedTuple):
    """What the header of a -shm file says about the -wal file."""

    salts: bytes
    frames: int
    saved_frames: int
    """How many of them are in the database file too."""
    frame_bytes: int


def check_files(path: Path, *, for_writing: bool = False) -> None:
    """Raises SchemaError if a file beside the database is missing or belongs to another.

    Args: path, without symbolic links; for_writing, whether the caller will write.
    """
    deadline = time.monotonic() + _RETRY_SECONDS
    while fault := _fault(path, for_writing=for_writing):
        if time.monotonic() > deadline:
            raise SchemaError(fault)
        time.sleep(0.02)


def is_open_elsewhere(path: Path) -> bool:
    """Returns whether another process reads or writes the database."""
    return not _is_open_here(path) and _lock_type(path, _SHARED_LOCK) != fcntl.F_UNLCK


def has_unsaved_content(path: Path) -> bool:
    """Returns whether a file beside the database has content that the database file may lack."""
    return any(_size(path, suffix) > 0 for suffix in ("-wal", "-journal"))


def _fault(path: Path, *, for_writing: bool) -> str:
    try:
        if _size(path, "") == 0:  # SQLite would delete the -wal file
            return _ORPHANED if _size(path, "-wal") > 0 else ""
        if _is_open_here(path):
            return ""
        header = _read(path, 20)
        is_in_wal_mode = header[18:] == b"\2\2"
        if path.stat().st_nlink > 1 and (for_writing or is_in_wal_mode):
            return _LINKED
        if is_in_wal_mode:
            return _log_fault(path)
        return _STRAY if _size(path, "-wal") > 0 else ""  # SQLite would replay it nevertheless
    except PermissionError:  # whoever opens the file reports it
        return ""


def _log_fault(path: Path) -> str:
    lock_type = _lock_type(path, _SHARED_LOCK)
    is_shm_locked = _lock_type(Path(f"{path}-shm"), _SHM_LOCK) != fcntl.F_UNLCK
    if lock_type == fcntl.F_RDLCK:
        return "" if is_shm_locked and _is_log_of(path, _read_index(path)) else _FOREIGN
    if lock_type == fcntl.F_UNLCK and is_shm_locked:  # the other process has another database file open
        return _FOREIGN
    index = _read_index(path)
    is_unsaved = index is not None and index.frames > index.saved_frames and not _is_log_of(path, index)
    return _UNSAVED if is_unsaved and _is_of_this_boot(Path(f"{path}-shm")) else ""


def _is_of_this_boot(shm: Path) -> bool:
    """Returns whether the content is current. Nothing syncs a -shm file, so a power cut can leave an older state."""
    boot_time = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return shm.stat().st_mtime > boot_time


def _is_log_of(path: Path, index: _LogIndex | None) -> bool:
    """Returns whether the -shm file describes this -wal file."""
    try:
        header = _read(Path(f"{path}-wal"), _WAL_HEADER_BYTES)
    except FileNotFoundError:
        return False
    if index is None or index.frames == 0:  # the log is empty, or about to be overwritten from its beginning
        return True
    needed_bytes = _WAL_HEADER_BYTES + index.frames * index.frame_bytes
    return header[16:24] == index.salts and _size(path, "-wal") >= needed_bytes


def _read_index(path: Path) -> _LogIndex | None:
    """Returns the header of the -shm file, or None if there is none."""
    try:
        header = _read(Path(f"{path}-shm"), 136)
    except FileNotFoundError:
        return None
    if len(header) < 136 or not header[12]:  # not initialized
        return None
    page_size, frames = struct.unpack_from("=HI", header, 14)
    [saved_frames] = struct.unpack_from("=I", header, 96)
    page_bytes = page_size if page_size > 1 else 65536
    return _LogIndex(header[32:40], frames, saved_frames, page_bytes + _FRAME_HEADER_BYTES)


def _read(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _size(path: Path, suffix: str) -> int:
    try:
        return Path(f"{path}{suffix}").stat().st_size
    except FileNotFoundError:
        return 0


def _lock_type(path: Path, byte_range: tuple[int, int]) -> int:
    """Returns the type of the lock that another process holds: F_RDLCK, F_WRLCK, or F_UNLCK for none."""
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, *byte_range, 0)
    try:
        with path.open("rb") as file:
            lock_type: int = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, request))[0]
    except OSError:  # no file, or a file system without locks
        return fcntl.F_UNLCK
    return lock_type


def _is_open_here(path: Path) -> bool:
    """Returns whether this process has the file open. Then reading it here would release the locks of SQLite.

    https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_
    """
    return any(_is_same(connection, path) for connection in apsw.connections())


def _is_same(connection: apsw.Connection, path: Path) -> bool:
    try:
        return path.samefile(connection.filename)
    except (OSError, apsw.ConnectionClosedError):
        return False
