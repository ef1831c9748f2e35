"""The areas (arenas) from which the C library allocates memory."""

import os
from contextlib import suppress
from typing import Final

_VARIABLE: Final = "MALLOC_ARENA_MAX"
_M_ARENA_MAX: Final = -8  # in malloc.h
_MAX_ARENAS: Final = 2


def limit_arenas() -> None:
    """Limits the GNU C library to two arenas. Its default is eight for each core.

    Each arena keeps freed memory, which only the threads of that arena use again. Call this before the process starts
    a thread. A value of MALLOC_ARENA_MAX in the environment takes precedence. On other C libraries nothing happens.

    Source: mallopt(3).
    """
    if os.environ.get(_VARIABLE, "").strip():
        return
    with suppress(ImportError, OSError, AttributeError):  # a Python without ctypes, or a C library without mallopt
        from ctypes import CDLL

        CDLL(None).mallopt(_M_ARENA_MAX, _MAX_ARENAS)
