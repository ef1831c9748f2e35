"""The PostgreSQL cluster of the tests is local, private and temporary."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import psycopg
import pytest

from tests.support.postgres import cluster as cluster_module
from tests.support.postgres.cluster import HOW_TO_GET_IT, QUICK, SAFE, Cluster, NoPostgres, Server, programs
from tests.support.postgres.databases import Databases
from tests.support.postgres.pgbouncer import pgbouncer
from tests.support.waiting import HUNG_SECONDS, eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(QUICK) as made:
        yield made


@pytest.fixture(scope="module")
def databases(cluster: Cluster) -> Iterator[Databases]:
    with Databases(cluster, prepare) as made:
        yield made


def prepare(url: str) -> None:
    """Creates a schema with a foreign key, where the order of deletes could matter."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TABLE store (store_id TEXT, secret BYTEA, head_revision INT, oldest_revision INT,"
            " chain_revision INT, head_hash TEXT, oldest_hash TEXT, versions_revision INT, versions_us INT)"
        )
        connection.execute("INSERT INTO store VALUES ('', '', 0, 0)")
        connection.execute("CREATE TABLE parent (id INT PRIMARY KEY)")
        connection.execute("CREATE TABLE child (id INT NOT NULL REFERENCES parent)")


def rows(url: str) -> tuple[int, int]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT (SELECT count(*) FROM parent), (SELECT count(*) FROM child)").fetchone()
    assert found
    return found


def fill(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO parent VALUES (1)")
        connection.execute("INSERT INTO child VALUES (1)")
        connection.execute("UPDATE store SET head_revision = 1")


def test_postgres_does_not_run_as_root(cluster: Cluster) -> None:
    assert Path(f"/proc/{cluster.pid}").stat().st_uid != 0


def test_a_cluster_and_a_pgbouncer_run_although_the_temporary_folder_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Cluster(QUICK) as made, pgbouncer(made.url(), "session") as pooled:
        psycopg.connect(pooled).close()


def test_a_role_has_the_password_of_the_servers_user() -> None:
    with Cluster(QUICK) as made:
        with made.connect() as admin:
            admin.execute("ALTER ROLE postgres PASSWORD 'p@ss w/o''rd'")
            (made.folder / "data" / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
            admin.execute("SELECT pg_reload_conf()")
        eventually(lambda: not made.answers())
        server = Server(f"postgresql://postgres:p%40ss%20w%2Fo%27rd@127.0.0.1:{made.port}")
        with server.role(server.url()) as url, pgbouncer(server.url(), "session") as pooled:
            for each in (url, pooled):
                psycopg.connect(each).close()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)


def test_the_cluster_listens_only_on_loopback(cluster: Cluster) -> None:
    sockets = {str(entry.readlink()) for entry in Path(f"/proc/{cluster.pid}/fd").iterdir()}
    inodes = {name.removeprefix("socket:[").removesuffix("]") for name in sockets if name.startswith("socket:")}
    listening = []
    for table in ("tcp", "tcp6", "unix"):
        lines = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
        listening += [line[1] for line in lines if inodes & set(line) and (table == "unix" or line[3] == "0A")]
    assert listening == [f"0100007F:{cluster.port:04X}"]


def test_the_cluster_does_not_sort_by_bytes(cluster: Cluster) -> None:
    """So the tests detect a column without COLLATE "C"."""
    with cluster.connect() as connection:
        assert connection.execute("SELECT 'a' < 'B'").fetchone() == (True,)


@pytest.mark.parametrize("end", [Cluster.stop, Cluster.kill], ids=["stopped", "killed"])
def test_a_stopped_cluster_leaves_nothing_behind(end: Callable[[Cluster], None]) -> None:
    with Cluster(QUICK) as cluster:
        folder, pids = cluster.folder, [cluster.pid, *cluster.children()]
        mapped = [line.split() for line in Path(f"/proc/{cluster.pid}/maps").read_text().splitlines()]
        [shared] = {fields[4] for fields in mapped if fields[-2].startswith("/SYSV")}
        assert shared in shared_memory()
        assert not any(fields[-1].startswith("/dev/shm/") for fields in mapped)
        assert folder.is_dir()
        end(cluster)
    assert shared not in shared_memory()
    assert not folder.exists()
    assert [pid for pid in pids if is_running(pid)] == []


def shared_memory() -> set[str]:
    """The ids of all shared memory segments on this machine."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status  # a zombie does not run


def test_a_promoted_standby_has_every_acknowledged_commit() -> None:
    with Cluster(SAFE) as primary, Cluster(SAFE, primary) as standby:
        primary.replicate_synchronously()
        url = primary.create_database("given")
        prepare(url)
        fill(url)
        primary.kill()
        standby.promote()
        assert rows(standby.url("given")) == (1, 1)
        with standby.connect("given") as connection:
            connection.execute("INSERT INTO parent VALUES (2)")  # does not wait for a standby
        assert rows(standby.url("given")) == (2, 1)


def test_every_database_is_empty_and_a_store_of_its_own(databases: Databases) -> None:
    stores = set()
    for _ in range(3):
        with databases.acquire() as url, databases.acquire() as other:
            assert url != other
            for one in (url, other):
                assert rows(one) == (0, 0)
                with psycopg.connect(one) as connection:
                    stores.add(connection.execute("SELECT store_id, secret FROM store").fetchone())
                    assert connection.execute("SELECT head_revision FROM store").fetchone() == (0,)
                fill(one)
    assert len(stores) == 6


def test_a_database_with_an_open_connection_is_not_reused(databases: Databases) -> None:
    with databases.acquire() as url:
        stays = psycopg.connect(url)
    with databases.acquire() as next_url:
        assert next_url != url
    with pytest.raises(psycopg.OperationalError):
        stays.execute("SELECT 1")
    stays.close()


def test_a_database_with_a_changed_schema_is_not_reused(databases: Databases) -> None:
    with databases.acquire() as url, psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE child ADD COLUMN another INT")
    with databases.acquire() as next_url:
        assert next_url != url


@pytest.mark.parametrize(
    ("version", "fits"), [("9.6.24", False), ("14.18 (Debian)", False), ("15.13", True), ("18beta1", True)]
)
def test_an_older_postgres_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, *, fits: bool
) -> None:
    for name in ("initdb", "postgres"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cluster_module, "DEBIAN", tmp_path / "nowhere")
    with nullcontext() if fits else pytest.raises(NoPostgres, match="15 or later"):
        assert programs() == tmp_path


WITHOUT = """
from pathlib import Path
import pytest
from tests.support.postgres import cluster
cluster.DEBIAN = Path("nowhere")

@pytest.fixture
def standby():
    with cluster.Cluster(cluster.SAFE):
        yield

def test_with_the_shared_one(postgres): pass
def test_with_the_shared_one_again(postgres): pass
def test_with_a_fixture_of_its_own(standby): pass
def test_that_makes_one():
    with cluster.Cluster(cluster.QUICK):
        pass
"""


def test_without_postgres_tests_are_skipped_with_install_instructions(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_it.py").write_text(WITHOUT)
    environment = {name: value for name, value in os.environ.items() if name != "CASELOAD_TEST_POSTGRES_URL"}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.support.postgres.fixtures",
            "-p",
            "tests.support.skips",
            str(tmp_path),
        ],
        env={**environment, "CI": "", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG_SECONDS,
    )
    assert run.returncode == 0, run.stdout
    assert f"\n4 tests need {HOW_TO_GET_IT.removeprefix('needs ')}\n" in run.stdout
