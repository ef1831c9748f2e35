"""What a stop leaves of a file, and of a read that goes on."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from caseload_server.domain import errors
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.backends.sqlite.migrate import migrate

from tests.process.starting import url
from tests.running import ServerProcess


def test_a_stopped_server_leaves_one_file(tmp_path: Path) -> None:
    with ServerProcess(url(tmp_path / "caseload.db")) as server:
        assert server.stop()[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["caseload.db"]  # checkpointed


def test_a_read_that_outlasts_the_grace_period_does_not_break_the_stop(tmp_path: Path) -> None:
    path = tmp_path / "caseload.db"
    migrate(path)
    database = SqliteDatabase(path)
    slow = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 3000000) SELECT count(*) FROM n"
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(database.read, slow)
        time.sleep(0.1)
        assert not reading.done()
        database.close()
        assert reading.exception() is None or isinstance(reading.exception(), errors.DomainError)
