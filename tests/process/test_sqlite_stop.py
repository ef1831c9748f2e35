"""The files that a stop leaves, and a stop during a long read."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from caseload_server.domain import errors
from caseload_server.store.backends.protocol import Value
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.backends.sqlite.migrate import migrate

from tests.process.command_runner import url
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS


def test_a_stopped_server_leaves_one_file(tmp_path: Path) -> None:
    with ServerProcess(url(tmp_path / "caseload.db")) as server:
        assert server.stop()[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["caseload.db"]  # checkpointed


def test_a_read_longer_than_the_grace_period_does_not_prevent_the_stop(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    migrate(path)
    database = SqliteDatabase(path)
    begun, closed = threading.Event(), threading.Event()

    def read_on() -> list[tuple[Value, ...]]:
        with database.snapshot() as transaction:
            transaction.run("SELECT 1")
            begun.set()
            closed.wait(HUNG_SECONDS)
            return transaction.run("SELECT 2")

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_on)
        assert begun.wait(HUNG_SECONDS)
        database.close()
        closed.set()
        assert reading.exception() is None or isinstance(reading.exception(), errors.DomainError)
