import gc
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import apsw
import pytest
from caseload_server.config import Config, sqlite_path
from caseload_server.rpc.server import CaseloadServer, build_server
from caseload_server.store.backends.factory import migrate
from hypothesis import HealthCheck, settings

from tests.support.postgres.fixtures import postgres, postgres_databases, postgres_url
from tests.support.servers import NO_LOG, Client
from tests.support.waiting import NEVER_SECONDS

__all__ = ["postgres", "postgres_databases", "postgres_url"]
pytest_plugins = ["tests.support.environment", "tests.support.skips", "tests.support.stray_output"]


# Shells start background jobs with these signals ignored, and children inherit that.
for ignored, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, default)


# Property tests try the same examples on every machine, have no time limit, and share a store between examples.
settings.register_profile(
    "same_everywhere",
    settings.get_profile("ci"),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("same_everywhere")

SLOW_FOLDERS: Final = ("benchmarks", "fuzz", "hostile", "process")
"""Tests of whole processes: seconds each. `make test-processes` runs them."""


def has_no_slow_test(config: pytest.Config) -> bool:
    """Whether this run is that of `make test`."""
    return bool(config.option.markexpr == "not slow")


def pytest_configure(config: pytest.Config) -> None:
    """Lets the tests that are not slow write their files in memory. Otherwise they wait for a disk, mostly to sync."""
    is_worker = hasattr(config, "workerinput")  # it inherits the variable
    if has_no_slow_test(config) and not is_worker and (memory := in_memory()):
        os.environ["TMPDIR"] = tempfile.tempdir = str(memory)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the folders in which every test is slow: to import them takes a second of each process."""
    is_slow = collection_path.parent == Path(__file__).parent and collection_path.name in SLOW_FOLDERS
    return True if is_slow and has_no_slow_test(config) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests in these folders as slow."""
    root = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(root) and item.path.relative_to(root).parts[0] in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Keeps what has been imported and collected from the garbage collector, which saves 4 % of the CPU time."""
    gc.collect()
    gc.freeze()


NewDatabase = Callable[[], AbstractContextManager[str]]
"""Creates an empty database for the duration of a with block; yields its URL."""
_MEMORY: Final = Path("/dev/shm")
_ROOM_BYTES: Final = 2**32
"""For the files of several processes, each with a PostgreSQL cluster."""


def in_memory() -> Path | None:
    """A memory file system with space, where programs can run, or None. Tests need not wait for syncs there."""
    if not _MEMORY.is_dir() or os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
        return None
    return _MEMORY if shutil.disk_usage(_MEMORY).free > _ROOM_BYTES else None


@contextmanager
def sqlite_file() -> Iterator[str]:
    """Yields the URL of a file that does not exist yet."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as folder:
        yield f"sqlite:///{folder}/caseload.db"


@cache
def _empty_file() -> bytes:
    """A migrated SQLite file: to copy it takes less than half the time of a migration."""
    with sqlite_file() as url:
        migrate(url)
        return sqlite_path(url).read_bytes()


def create_sqlite_file(path: Path) -> None:
    """Creates an empty migrated file with a store id and a secret of its own."""
    path.touch(mode=0o600)
    path.write_bytes(_empty_file())
    with closing(apsw.Connection(str(path))) as connection:
        renewed = (secrets.token_hex(6), secrets.token_bytes(32))
        connection.execute("UPDATE store SET store_id = ?, secret = ?", renewed)


@contextmanager
def migrated_sqlite_file() -> Iterator[str]:
    """Yields the URL of an empty migrated file."""
    with sqlite_file() as url:
        create_sqlite_file(sqlite_path(url))
        yield url


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def new_database(request: pytest.FixtureRequest) -> NewDatabase:
    """Each backend in turn; tests do not depend on which one it is."""
    if request.param == "sqlite":
        return migrated_sqlite_file
    acquire: NewDatabase = request.getfixturevalue("postgres_databases").acquire
    return acquire


@pytest.fixture
def database_url(new_database: NewDatabase) -> Iterator[str]:
    """An empty database for this test only."""
    with new_database() as url:
        yield url


@contextmanager
def serving(database_url: str, **settings: Any) -> Iterator[CaseloadServer]:
    fixed: dict[str, Any] = {"address": "127.0.0.1:0", "database": database_url, "drain_seconds": 0, "threads": 4}
    fixed["queue_timeout_seconds"] = NEVER_SECONDS  # calls are not shed because the machine is busy
    fixed["access_log"] = NO_LOG
    started = build_server(Config(**{**fixed, **settings}))
    started.start()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture
def server(database_url: str) -> Iterator[CaseloadServer]:
    """A server for this test only, in this process, over a real socket."""
    with serving(database_url) as started:
        yield started


@pytest.fixture
def measured_server(database_url: str) -> Iterator[CaseloadServer]:
    """A second server, with metrics."""
    with serving(database_url, metrics_address="127.0.0.1:0") as started:
        yield started


@pytest.fixture
def client(server: CaseloadServer) -> Iterator[Client]:
    """A client of `server`."""
    caller = Client(server.address)
    yield caller
    caller.close()


@pytest.fixture(scope="module")
def shared_client(new_database: NewDatabase) -> Iterator[Client]:
    """A client of one server for several tests, which do not see what the others store."""
    with new_database() as url, serving(url) as started:
        caller = Client(started.address)
        yield caller
        caller.close()
