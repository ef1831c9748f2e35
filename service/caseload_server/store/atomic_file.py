"""Files that stand at their name only when they are whole."""

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

COMPANIONS: Final = ("", "-wal", "-shm", "-journal")
"""What the names of the files end in that SQLite keeps beside a database, after its own."""
EXISTS: Final = "the file, or a -wal file of an earlier one, exists already"
_ENDING: Final = {signal.SIGINT, signal.SIGTERM}
_BEING_WRITTEN: Final = "another run is writing the file"


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """An empty file, its user's alone, to be filled in the with block; then it is the target.

    It lies in a hidden folder beside the target, of which nothing is left where the block raises. What a process left
    that was killed, the next one for the same target removes. Raises FileExistsError, with a text; OSError. A -wal file
    of an earlier database counts as existing: SQLite would play it into the new one.
    """
    with _own_folder(target.with_name(f".{target.name}.part")) as folder:
        if any(target.with_name(f"{target.name}{end}").exists() for end in COMPANIONS):
            raise FileExistsError(EXISTS)
        part = folder / target.name
        part.touch(0o600)
        yield part
        _sync(part)
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        _place(part, target)
        _sync(target.parent)


@contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that nobody else uses, for the length of the with block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        descriptor = _locked(folder)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for left in folder.iterdir():
                left.unlink()
            yield folder
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _locked(folder: Path) -> int:
    """Makes the folder where it is not there, and locks it until the descriptor is closed, or its process ends."""
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if not _is_free(descriptor, folder):
        os.close(descriptor)
        raise FileExistsError(_BEING_WRITTEN)
    return descriptor


def _is_free(descriptor: int, folder: Path) -> bool:
    """Locks it, unless another run has done so, or has just removed it."""
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened = os.fstat(descriptor)
        # Nor does anyone else lay one out for us, such as in /tmp.
        return os.path.samestat(opened, folder.stat()) and opened.st_uid == os.geteuid()
    return False


def _place(part: Path, target: Path) -> None:
    """Gives the file its name, unless there is one by that name. Raises FileExistsError.

    At once, so that nothing else is ever seen at the name; but on a file system without links an empty file is, for a
    moment, and stays where the process is killed in it.
    """
    try:
        os.link(part, target)
    except FileExistsError:
        raise FileExistsError(EXISTS) from None
    except OSError:  # a file system without links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        part.replace(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
