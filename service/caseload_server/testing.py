"""`caseload-test-server`: the real server for the tests of callers, on a temporary SQLite database.

It prints {"address": HOST:PORT} on standard output. Then it reads commands from standard input, one line of JSON each,
and answers each with a line. It stops when standard input ends. `caseload serve` does not use this module.

    {"do": "clear"}                                             an empty store, and no fault
    {"do": "fault", "reason": REASON, "calls": N, "retry_after_seconds": S, "delay_seconds": S}
    {"do": "stop"}, {"do": "start"}                             on the same port and database
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from caseload_server.config import Config
from caseload_server.domain import errors
from caseload_server.observability import logs
from caseload_server.open_files import raise_limit
from caseload_server.rpc.server import build_server
from caseload_server.security.principal import current_principal
from caseload_server.store import RelationshipStore
from caseload_server.store.backends.factory import migrate
from caseload_server.store.backends.protocol import Parameters, Row, S, Sharing, T, Tail, Transaction
from caseload_server.store.backends.sqlite.connection import connect
from caseload_server.store.backends.sqlite.database import SqliteDatabase

FAULTS: Final[dict[str, Callable[[], errors.DomainError]]] = {
    "OVERLOADED": lambda: errors.Overloaded(0),
    "SHUTTING_DOWN": errors.ShuttingDown,
    "STORE_BUSY": errors.StoreBusy,
    "STORE_FULL": errors.StoreFull,
    "STORE_UNAVAILABLE": errors.StoreUnavailable,
}
"""The errors that a fault can raise, by reason."""


class Fault:
    """An error or a delay of the database operations of calls."""

    def __init__(
        self, reason: str = "", calls: int | None = None, retry_after_seconds: float = 0, delay_seconds: float = 0
    ) -> None:
        """Creates a fault.

        Args: reason, of FAULTS, or empty for no error; calls, how many fail, None for all; retry_after_seconds, the
        retry delay of errors that have one; delay_seconds, before each operation.

        Raises KeyError if the reason is unknown.
        """
        self._error = FAULTS[reason] if reason else None
        self._calls_left = calls
        self._retry_after_seconds = retry_after_seconds
        self._delay_seconds = delay_seconds
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def end(self) -> None:
        """Fails all delayed calls. Their callers may have given up, and the calls would write into the next test."""
        self._ended.set()

    def apply(self) -> None:
        """Waits, or raises the error. Does nothing outside a call, so that readiness and watches stay as they are."""
        if current_principal.get(None) is None:
            return
        if self._delay_seconds and self._ended.wait(self._delay_seconds):
            raise errors.ShuttingDown
        if self._error and self._takes_call():
            error = self._error()
            if error.retry_after_seconds is not None:
                error.retry_after_seconds = self._retry_after_seconds
            raise error

    def _takes_call(self) -> bool:
        with self._lock:
            if self._calls_left is None:
                return True
            self._calls_left -= 1
            return self._calls_left >= 0


class FaultyDatabase:
    """Delegates to a database. The current fault applies before each operation of a call."""

    def __init__(self, database: SqliteDatabase, fault: Callable[[], Fault]) -> None:
        self._database = database
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def read(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        self._fault().apply()
        return self._database.read(sql, parameters)

    def snapshot(self) -> AbstractContextManager[Transaction]:
        self._fault().apply()
        return self._database.snapshot()

    def write(self, work: Callable[[Transaction], T]) -> T:
        self._fault().apply()
        return self._database.write(work)

    def write_with_tail(self, work: Callable[[Transaction], S], tail: Tail[S, T], sharing: Sharing) -> T:
        self._fault().apply()
        return self._database.write_with_tail(work, tail, sharing)


class ControlledServer:
    """A server whose store can be emptied, and whose calls can be made to fail."""

    def __init__(self, folder: Path) -> None:
        """Args: folder, for the database and an empty copy of it."""
        self._path, empty = folder / "caseload.db", folder / "empty.db"
        self.address = "127.0.0.1:0"
        self._fault = Fault()
        migrate(f"sqlite:///{empty}")
        migrate(f"sqlite:///{self._path}")
        self._empty = connect(empty, create=False)
        self.start()

    def start(self) -> None:
        config = Config(
            address=self.address,
            database=f"sqlite:///{self._path}",
            drain_seconds=0,
            grace_seconds=1,
            access_log=Path(os.devnull),
        )
        self._server = build_server(config, open_store=self._open_store)
        self._server.start()
        self.address = self._server.address

    def _open_store(self, _config: Config, clock: Callable[[], int], *_observers: object) -> RelationshipStore:
        database: Any = FaultyDatabase(SqliteDatabase(self._path), lambda: self._fault)
        return RelationshipStore(database, clock)

    def stop(self) -> None:
        self._server.stop(drain=False)

    def fault(self, **settings: Any) -> None:
        """Replaces the current fault. Args: settings, those of Fault; without any, the new fault has no effect."""
        ended, self._fault = self._fault, Fault(**settings)
        ended.end()

    def clear(self) -> None:
        """Empties the store. It does not reset revisions, so an open watch receives later writes."""
        self.fault()
        database = connect(self._path, create=False)
        [head] = database.execute("SELECT head_revision FROM store")
        self._empty.execute("UPDATE store SET head_revision = ?1, oldest_revision = ?1", head)
        with database.backup("main", self._empty, "main") as copying:
            copying.step()
        database.close()


def main() -> None:
    """Runs the server until standard input ends."""
    os.umask(0o077)
    os.environ["OTEL_SDK_DISABLED"] = "true"  # the variables of the environment are for the caller's own traces
    raise_limit()
    logs.configure("warning")
    with TemporaryDirectory(prefix="caseload-") as folder:
        server = ControlledServer(Path(folder))
        print(json.dumps({"address": server.address}), flush=True)
        for line in sys.stdin:
            print(json.dumps(_execute(server, json.loads(line))), flush=True)
        server.stop()


def _execute(server: ControlledServer, command: dict[str, Any]) -> dict[str, str]:
    commands: dict[str, Callable[..., None]] = {
        "clear": server.clear,
        "fault": server.fault,
        "start": server.start,
        "stop": server.stop,
    }
    try:
        commands[command.pop("do")](**command)
    except KeyError as error:
        return {"error": f"unknown: {error}"}
    return {}
