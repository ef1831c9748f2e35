"""`caseload` with a feature changed, to measure the feature's effect (an ablation).

    python benchmarks/ablation_server.py [--batches-of-one] [--sync-seconds N] serve ...

--batches-of-one: disables group commit; every write commits alone, on PostgreSQL each on a connection of its own.
--sync-seconds N: every fsync takes N seconds longer, as on a slow disk (a sleep in xSync).
"""

import argparse
import sys
import time

import apsw
from caseload_server.commands import main as command
from caseload_server.config import Config
from caseload_server.store.backends.postgres import writes as postgres
from caseload_server.store.backends.sqlite import database as sqlite

_SYSTEM = apsw.vfs_names()[0]  # the system's VFS, read before this one becomes the default


class _SlowFile(apsw.VFSFile):
    """A file of the system's VFS with a slow sync."""

    sync_seconds = 0.0

    def xSync(self, flags: int) -> None:
        time.sleep(self.sync_seconds)
        super().xSync(flags)


class _SlowDisk(apsw.VFS):
    """The default VFS for every connection of the process."""

    def __init__(self) -> None:
        super().__init__("slow", _SYSTEM, makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _SlowFile(_SYSTEM, name, flags)


def main() -> None:
    """Runs `caseload` with the remaining arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches-of-one", action="store_true")
    parser.add_argument("--sync-seconds", type=float, default=0.0)
    changes, sys.argv[1:] = parser.parse_known_args()
    if changes.batches_of_one:
        sqlite._MAX_BATCH = postgres.MAX_BATCH = 1  # type: ignore[misc]
        postgres.MAX_LEADERS = Config().pool_size  # type: ignore[misc]
    if changes.sync_seconds:
        _SlowFile.sync_seconds = changes.sync_seconds
        keep = _SlowDisk()  # noqa: F841 - SQLite uses it until it is garbage-collected
    command.main()


if __name__ == "__main__":
    main()
