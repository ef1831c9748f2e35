"""A server that authenticates callers, and the credentials of its callers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caseload_server.config import Config
from caseload_server.rpc.server import CaseloadServer, build_server
from caseload_server.security import api_keys
from caseload_server.security.principal import PERMISSIONS

from tests.conftest import create_sqlite_file
from tests.support.api_driver import ApiDriver
from tests.support.servers import NO_LOG
from tests.support.waiting import NEVER_SECONDS, eventually

Metadata = tuple[tuple[str, str | bytes], ...]


class KeysFile:
    """Writes a keys file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch(mode=0o600)

    def add(self, name: str, *permissions: str) -> str:
        """Adds a caller with a new key and returns the token. The default is all permissions."""
        token, line = api_keys.generate_key(name, permissions or PERMISSIONS)
        self.append(line)
        return token

    def append(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{line}\n")

    def replace(self, content: str) -> None:
        """Replaces the file under the same name, as an editor does."""
        new = self.path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(content)
        new.rename(self.path)


def bearer(token: str) -> Metadata:
    """The metadata that carries a key."""
    return (("authorization", f"Bearer {token}"),)


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[CaseloadServer]:
    """A server in this process, on a database in this folder."""
    file = folder / "caseload.db"
    if not file.exists():
        create_sqlite_file(file)
    database = f"sqlite:///{file}"
    fixed: dict[str, Any] = {"address": "127.0.0.1:0", "database": database, "drain_seconds": 0, "threads": 8}
    fixed["queue_timeout_seconds"] = NEVER_SECONDS  # calls are not shed because the machine is busy
    fixed["access_log"] = NO_LOG
    config = Config(**{**fixed, **settings})
    server = build_server(config)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def await_writes(server: CaseloadServer, running: int, waiting: int = 0) -> None:
    """Waits until this many writes run and this many are queued."""
    writes = server._parts.executors.writes
    eventually(lambda: (writes.in_flight(), writes.queue_depth()) == (running, waiting))


class LogReader:
    """Reads the lines of an access log."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        whole, _, _ = self.path.read_text().rpartition("\n")  # the last line may be written at this moment
        return [json.loads(line) for line in whole.splitlines()]


@contextmanager
def logging(folder: Path, **settings: Any) -> Iterator[tuple[CaseloadServer, ApiDriver, LogReader]]:
    """A server, a client of it, and its access log."""
    path = folder / "access.log"
    with serving(folder, access_log=path, **settings) as server, ApiDriver(server.address) as api:
        yield server, api, LogReader(path)
