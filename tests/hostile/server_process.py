"""A server on a machine with default limits."""

import resource
import sys
from pathlib import Path
from typing import Final

from tests.fuzz.server_process import Serving
from tests.hostile.attacks import IDLE
from tests.security.server_fixture import KeysFile
from tests.support.servers import free_address

USUAL_DESCRIPTORS: Final = 1024
"""The default soft limit of most systems; each connection takes one descriptor."""


class Untuned(Serving):
    """A server with this soft limit, which it can raise to the hard limit. It authenticates its callers."""

    def __init__(self, folder: Path) -> None:
        keys = KeysFile(folder / "keys")
        self.honest_key = keys.add("honest")
        self.attacker_key = keys.add("attacker")
        limited = ("sh", "-c", f'ulimit -Sn {USUAL_DESCRIPTORS} && exec "$@"', "sh")
        self.metrics_address = free_address()
        keyed = ("env", f"CASELOAD_KEYS_FILE={keys.path}", f"CASELOAD_METRICS_ADDRESS={self.metrics_address}")
        super().__init__(folder, command=(*limited, *keyed, sys.executable, "-m", "caseload_server"))


def has_room() -> bool:
    """Whether the hard limit permits as many connections as an attack needs."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= IDLE + 500
