"""Looks up a file whose folder may be inaccessible."""

import errno
from pathlib import Path
from typing import Final

_NO_FILE: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def file_mode(path: Path) -> int:
    """Returns the type and the mode bits of a file, 0 if there is none. Raises OSError if the file cannot be looked up.

    Path.exists, is_file and is_dir return False then, since Python 3.14. https://docs.python.org/3/library/pathlib.html
    """
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        return 0
