"""A server as a machine starts it that nobody has tuned."""

import resource
import sys
from pathlib import Path
from typing import Final

from tests.fuzz.server_process import Serving
from tests.hostile.attacks import IDLE

USUAL_DESCRIPTORS: Final = 1024
"""The soft limit that most systems give to a process; each connection takes one."""


def untuned(folder: Path) -> Serving:
    """A server with that limit, which it can raise as far as the hard one."""
    limited = ("sh", "-c", f'ulimit -Sn {USUAL_DESCRIPTORS} && exec "$@"', "sh")
    return Serving(folder, command=(*limited, sys.executable, "-m", "caseload_server"))


def has_room() -> bool:
    """Whether a process may have as many connections as an attack needs."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= IDLE + 500
