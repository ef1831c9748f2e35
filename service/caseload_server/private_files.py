"""Files with secrets, personal data or an authority: no other user may change them, and most no other may read."""

import os
import stat
from pathlib import Path
from typing import Final

from caseload_server.config import SettingError

SECRET_MODE: Final = 0o037
"""Mode bits that a file with secrets must not have.

The group may read it: root owns a Kubernetes secret, and its pod can read it only through a group.
"""
TRUST_MODE: Final = 0o022
"""Mode bits that a file with an authority must not have: whoever can write it can make certificates of every caller."""
DATA_MODE: Final = 0o007
"""Mode bits that a file with data must not have.

The group may write it: Kubernetes gives a volume with fsGroup to a group, which may then write every file.
"""
_ROOT: Final = 0


def read_private(setting: str, path: Path, max_bytes: int = -1) -> bytes:
    """Returns the content of a file with secrets. Raises SettingError, whose text never quotes the content.

    Args: setting, for the error; max_bytes, how much to read at most, by default everything.
    """
    content, fault = read_with_fault(setting, path, max_bytes)
    if fault:
        raise SettingError(setting, fault)
    return content


def read_trusted(setting: str, path: Path) -> bytes:
    """Returns the content of a file that others may read, but must not write. Raises SettingError."""
    content, fault = _read(setting, path, -1, TRUST_MODE, "run chmod go-w on it")
    if fault:
        raise SettingError(setting, fault)
    return content


def read_public(setting: str, path: Path) -> bytes:
    """Returns the content of a file that may have any mode and owner. Raises SettingError."""
    return read_with_fault(setting, path)[0]


def read_with_fault(setting: str, path: Path, max_bytes: int = -1) -> tuple[bytes, str]:
    """Returns the content of a file with secrets, and what is wrong with its mode or owner; empty if nothing is.

    Raises SettingError if it cannot be read.
    """
    return _read(setting, path, max_bytes, SECRET_MODE, "run chmod 600 or chmod 640 on it")


def _read(setting: str, path: Path, max_bytes: int, forbidden_mode: int, remedy: str) -> tuple[bytes, str]:
    try:
        with open(path, "rb", opener=_open) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise SettingError(setting, "is not a regular file")
            return file.read(max_bytes), _fault(found, forbidden_mode, remedy)
    except OSError:
        raise SettingError(setting, "cannot be read") from None


def _open(path: str, flags: int) -> int:
    """Opens a file. A pipe without a writer must not hold up the thread."""
    return os.open(path, flags | os.O_NONBLOCK)


def data_files_fault(*paths: Path) -> str:
    """Returns what is wrong with the mode or owner of files with data, as far as they exist; empty if nothing is."""
    faults = (_fault(path.stat(), DATA_MODE, f"run chmod o= on {path.name}") for path in paths if path.exists())
    return next(filter(None, faults), "")


def check_log_file(setting: str, path: Path) -> bool:
    """Checks a file with log lines, if it exists. Returns whether other users can read it. The group may read it.

    Raises SettingError if other users can write it.
    """
    try:
        found = path.stat()
    except OSError:  # whoever opens the file reports it
        return False
    if not stat.S_ISREG(found.st_mode):  # pipes and devices keep no lines
        return False
    if found.st_mode & stat.S_IWOTH:
        raise SettingError(setting, "can be written by other users: run chmod o-w on it")
    return bool(found.st_mode & stat.S_IROTH)


def _fault(found: os.stat_result, forbidden_mode: int, remedy: str) -> str:
    if found.st_mode & forbidden_mode:
        return f"is accessible to other users: {remedy}"
    # Root may run commands on the files of the server's user.
    if os.geteuid() not in {_ROOT, found.st_uid} and found.st_uid != _ROOT:
        return "belongs to another user: give it to root, or to the user that runs the server"
    return ""
