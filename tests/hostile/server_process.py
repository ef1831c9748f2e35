"""A server on a machine with default limits."""

import resource
import sys
from pathlib import Path
from typing import Final

from tests.fuzz.server_process import Serving
from tests.hostile.attacks import IDLE

USUAL_DESCRIPTORS: Final = 1024
"""The default soft limit of most systems; each connection takes one descriptor."""


def untuned(folder: Path) -> Serving:
    """A server with this soft limit, which it can raise to the hard limit."""
    limited = ("sh", "-c", f'ulimit -Sn {USUAL_DESCRIPTORS} && exec "$@"', "sh")
    return Serving(folder, command=(*limited, sys.executable, "-m", "caseload_server"))


def has_room() -> bool:
    """Whether the hard limit permits as many connections as an attack needs."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= IDLE + 500
