"""A server that asks who calls, and what its callers need."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caseload_server.config import Config
from caseload_server.rpc.server import CaseloadServer, build_server
from caseload_server.security import api_keys
from caseload_server.security.principal import PERMISSIONS

from tests.support.api_driver import ApiDriver
from tests.support.waiting import eventually

Metadata = tuple[tuple[str, str | bytes], ...]


class KeysFile:
    """A keys file in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch(mode=0o600)

    def add(self, name: str, *permissions: str) -> str:
        """A caller with a new key: the token. All permissions where none is given."""
        token, line = api_keys.generate_key(name, permissions or PERMISSIONS)
        self.append(line)
        return token

    def append(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{line}\n")

    def replace(self, content: str) -> None:
        """As an editor does: a new file under the old name."""
        new = self.path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(content)
        new.rename(self.path)


def bearer(token: str) -> Metadata:
    """The metadata that a key travels as."""
    return (("authorization", f"Bearer {token}"),)


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[CaseloadServer]:
    """A server in this process on a database in the folder."""
    database = f"sqlite:///{folder}/caseload.db"
    config = Config(**{"address": "127.0.0.1:0", "database": database, "drain_seconds": 0, "threads": 8, **settings})
    server = build_server(config)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def await_writes(server: CaseloadServer, running: int, waiting: int = 0) -> None:
    """Until so many writes have a thread, and so many wait for one."""
    writes = server._parts.executors.writes
    eventually(lambda: (writes.in_flight(), writes.queue_depth()) == (running, waiting))


class LogReader:
    """The lines of an access log, as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@contextmanager
def logging(folder: Path, **settings: Any) -> Iterator[tuple[CaseloadServer, ApiDriver, LogReader]]:
    """A server, a caller of it, and its access log."""
    path = folder / "access.log"
    with serving(folder, access_log=path, **settings) as server, ApiDriver(server.address) as api:
        yield server, api, LogReader(path)
