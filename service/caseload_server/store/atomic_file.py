"""Files that appear under their name only when they are complete."""

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

SQLITE_SUFFIXES: Final = ("", "-wal", "-shm", "-journal")
"""Suffixes of a SQLite database and of the files beside it."""
FILE_EXISTS: Final = "the file already exists, or a -wal file of an earlier database does"
_BEING_WRITTEN: Final = "another process is writing the file"
_ALL_SIGNALS: Final = signal.valid_signals()


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yields an empty file with mode 0600 to fill. At the end of the with block it gets the target's name.

    The file lies in a hidden folder beside the target. An exception removes the folder. What a killed process left
    there, the next run for the same target removes. A -wal file of an earlier database counts as existing: SQLite
    would replay it into the new one. Raises FileExistsError, with a text; OSError.
    """
    with _locked_folder(target.with_name(f".{target.name}.part")) as folder:
        # A symbolic link to no file counts as existing: it gives the name to a file elsewhere.
        if any(os.path.lexists(target.with_name(f"{target.name}{suffix}")) for suffix in SQLITE_SUFFIXES):
            raise FileExistsError(FILE_EXISTS)
        partial_file = folder / target.name
        partial_file.touch(0o600)
        yield partial_file
        _fsync(partial_file)
        signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
        _publish(partial_file, target)
        _fsync(target.parent)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that no other process uses, and removes it."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
    try:
        descriptor = _create_and_lock(folder)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
            for leftover in folder.iterdir():
                leftover.unlink()
            yield folder
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _create_and_lock(folder: Path) -> int:
    """Creates the folder if needed, and locks it. Returns the descriptor that holds the lock until it is closed.

    The end of the process closes it too. Raises FileExistsError.
    """
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:  # another process has just removed it
        raise FileExistsError(_BEING_WRITTEN) from None
    if not _try_lock(descriptor, folder):
        os.close(descriptor)
        raise FileExistsError(_BEING_WRITTEN)
    return descriptor


def _try_lock(descriptor: int, folder: Path) -> bool:
    """Locks the folder. Returns False if another process holds the lock, or has just removed the folder."""
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened = os.fstat(descriptor)
        # A folder of another user is refused: in /tmp, say, anyone could have prepared it.
        return os.path.samestat(opened, folder.stat()) and opened.st_uid == os.geteuid()
    return False


def _publish(partial_file: Path, target: Path) -> None:
    """Gives the file its name. Raises FileExistsError if the name is taken.

    A link is atomic, so no other file is ever visible under the name. On a file system without links an empty file is
    visible for a moment, and remains if the process is killed then.
    """
    try:
        os.link(partial_file, target)
    except FileExistsError:
        raise FileExistsError(FILE_EXISTS) from None
    except OSError:  # a file system without links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        partial_file.replace(target)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
