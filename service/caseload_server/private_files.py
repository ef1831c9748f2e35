"""Files with secrets or personal data: no other user may read or change them."""

import os
from pathlib import Path
from typing import Final

from caseload_server.config import SettingError

SECRET_MODE: Final = 0o037
"""Mode bits that a file with secrets must not have.

The group may read it: root owns a Kubernetes secret, and its pod can read it only through a group.
"""
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


def read_with_fault(setting: str, path: Path, max_bytes: int = -1) -> tuple[bytes, str]:
    """Returns the content of a file with secrets, and what is wrong with its mode or owner; empty if nothing is.

    Raises SettingError if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            fault = _fault(os.fstat(file.fileno()), SECRET_MODE, "run chmod 600 or chmod 640 on it")
            return file.read(max_bytes), fault
    except OSError:
        raise SettingError(setting, "cannot be read") from None


def check_data_files(setting: str, *paths: Path) -> None:
    """Checks files with data, as far as they exist. Raises SettingError."""
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        if fault := _fault(stat, DATA_MODE, f"run chmod o= on {path.name}"):
            raise SettingError(setting, fault)


def _fault(stat: os.stat_result, forbidden_mode: int, remedy: str) -> str:
    if stat.st_mode & forbidden_mode:
        return f"is accessible to other users: {remedy}"
    # Root may run commands on the files of the server's user.
    if os.geteuid() not in {_ROOT, stat.st_uid} and stat.st_uid != _ROOT:
        return "belongs to another user: give it to root, or to the user that runs the server"
    return ""
