"""Files that stand at their name only when they are whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

COMPANIONS: Final = ("", "-wal", "-shm", "-journal")
"""What the names of the files end in that SQLite keeps beside a database, after its own."""


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """An empty file beside the target, its user's alone, to be filled in the with block; then it is the target.

    Nothing is left of it where the block raises. Raises FileExistsError, OSError. A -wal file of an earlier database
    counts as existing: SQLite would play it into the new one.
    """
    if any(_companion(target, end).exists() for end in COMPANIONS):
        raise FileExistsError
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        _sync(part)
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # ours, or FileExistsError
        part.replace(target)
    finally:
        for end in COMPANIONS:
            _companion(part, end).unlink(missing_ok=True)
    _sync(target.parent)


def _companion(file: Path, end: str) -> Path:
    return file.with_name(f"{file.name}{end}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
