"""Finds out from the operating system why a file cannot be written."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Final

_TEXTS: Final = {
    errno.EACCES: "no permission",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk fails",
    errno.EMFILE: "too many open files",
    errno.EPERM: "no permission",
    errno.EROFS: "its file system is read-only",
}
NO_SPACE: Final = "its file system has no space left"
_NO_INODES: Final = "its file system has no inodes left: delete files there"
_PROBE: Final = b"\0" * 4096


def write_fault(path: Path, error: OSError | None = None) -> str:
    """Returns why the file, or another one beside it, cannot be written; empty if that is not known.

    Args: error, of a write to it. Without one, it tries to write.
    """
    failure = error or _try_writing(path)
    if failure is None or failure.errno is None:
        return ""
    if failure.errno == errno.ENOSPC:
        return _NO_INODES if _has_no_inodes(path) else NO_SPACE
    return _TEXTS.get(failure.errno, os.strerror(failure.errno))


def with_fault(text: str, fault: str) -> str:
    """Appends a fault to a text, if there is one."""
    return f"{text}: {fault}" if fault else text


def _try_writing(path: Path) -> OSError | None:
    try:
        if path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK))
        with tempfile.TemporaryFile(dir=path.parent) as beside:
            beside.write(_PROBE)
    except OSError as error:
        return error
    return None


def _has_no_inodes(path: Path) -> bool:
    """Returns whether its file system has a number of inodes, and none left: Btrfs has none, say."""
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return False
    return found.f_files > 0 and found.f_favail == 0
