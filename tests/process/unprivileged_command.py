"""`caseload` without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, so that file modes apply even to root."""

import ctypes
import os

from caseload_server.commands import main

_VERSION_3 = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2


def give_up_overrides() -> None:
    """Drops the process's own capabilities until the next exec; needs no privilege."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0
    sets[0] &= ~_OVERRIDES
    sets[1] &= ~_OVERRIDES
    assert libc.capset(header, sets) == 0


if __name__ == "__main__":
    if os.geteuid() == 0:
        give_up_overrides()
    main.main()
