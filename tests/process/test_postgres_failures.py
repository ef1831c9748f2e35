"""What an operator reads when PostgreSQL refuses: at the start, and in the log of a running server."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.api.client_calls import People
from tests.api.client_calls import refused as refused_call
from tests.process.command_runner import DRY_RUN, SECRET, SERVE, caseload, refusal
from tests.support.postgres.cluster import QUICK, Cluster
from tests.support.postgres.fixtures import migrate
from tests.support.postgres.pgbouncer import pgbouncer
from tests.support.servers import Client, ServerProcess
from tests.support.waiting import eventually

PURGE = ("purge", "--changes-before", "30d")
UNUSABLE = "the role may not read and write all rows of a table, or it is missing:"
ACCESS = """
host all with_password 127.0.0.1/32 scram-sha-256
host all not_allowed 127.0.0.1/32 reject
host all all 127.0.0.1/32 trust
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with roles that it refuses."""
    with Cluster(QUICK) as made:
        with made.connect() as admin:
            admin.execute("CREATE ROLE with_password LOGIN PASSWORD 'right'; CREATE ROLE not_allowed LOGIN")
            admin.execute("CREATE ROLE without_connections LOGIN CONNECTION LIMIT 0")
            (made.folder / "data" / "pg_hba.conf").write_text(ACCESS)
            admin.execute("SELECT pg_reload_conf()")
        eventually(lambda: not accepts(url_of(made, "not_allowed")))
        yield made


def accepts(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def url_of(cluster: Cluster, user: str, database: str = "postgres") -> str:
    parts = urlsplit(cluster.url(database))
    return parts._replace(netloc=f"{user}@127.0.0.1:{parts.port}").geturl()


def refused(folder: Path, url: str, command: tuple[str, ...] = SERVE) -> str:
    line = refusal(folder, *command, CASELOAD_DATABASE=url)
    assert line.startswith("--database: ")
    return line


@pytest.mark.parametrize(
    ("user", "database", "words"),
    [
        ("postgres", "no_such_database", 'database "no_such_database" does not exist'),
        ("no_such_role", "postgres", 'role "no_such_role" does not exist'),
        (f"with_password:{SECRET}", "postgres", 'password authentication failed for user "with_password"'),
        ("with_password", "postgres", "no password supplied"),
        ("not_allowed", "postgres", "pg_hba.conf rejects connection"),
        ("without_connections", "postgres", 'too many connections for role "without_connections"'),
        ("postgres", "postgres?sslmode=require", "server does not support SSL, but SSL was required"),
    ],
)
def test_a_refused_start_says_what_postgresql_says(
    tmp_path: Path, cluster: Cluster, user: str, database: str, words: str
) -> None:
    line = refused(tmp_path, url_of(cluster, user, database))
    assert words in line
    assert SECRET not in line


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://127.0.0.1:1/x", 'connection to server at "127.0.0.1", port 1 failed: Connection refused'),
        ("postgresql://no-such-host.invalid/x", "failed to resolve host 'no-such-host.invalid'"),
        ("postgresql:///x?service=no_such_service", 'definition of service "no_such_service" not found'),
        ("postgresql:///x?host=/nowhere", 'connection to server on socket "/nowhere/.s.PGSQL.5432" failed'),
    ],
)
def test_an_unreachable_server_is_named_as_libpq_names_it(tmp_path: Path, url: str, words: str) -> None:
    assert words in refused(tmp_path, url)


@pytest.mark.parametrize("password", [f"x@{SECRET}", f"x/{SECRET}", f"x%zz{SECRET}", f"x:{SECRET}@y/{SECRET}"])
def test_a_password_that_makes_the_url_malformed_is_not_repeated(tmp_path: Path, password: str) -> None:
    assert SECRET not in refused(tmp_path, f"postgresql://ann:{password}@127.0.0.1:1/x")


def test_a_missing_privilege_is_named_with_its_sqlstate(tmp_path: Path, cluster: Cluster) -> None:
    url = cluster.create_database("private")
    migrate(url)
    assert "permission denied for table migration (SQLSTATE 42501)" in refused(
        tmp_path, url_of(cluster, "with_password:right", "private")
    )


@pytest.mark.parametrize("command", [SERVE, ("migrate",), DRY_RUN], ids=" ".join)
def test_transaction_pooling_is_refused_at_the_start(
    tmp_path: Path, postgres_url: str, command: tuple[str, ...]
) -> None:
    with pgbouncer(postgres_url, "transaction") as pooled:
        assert "use session pooling, not transaction" in refused(tmp_path, pooled, command)


def wait_for_event(server: ServerProcess, name: str) -> dict[str, Any]:
    """Reads the log of a running server until it has the event."""
    log = server.process.stderr
    assert log is not None
    [event] = eventually(lambda: events(log.readline(), name))
    return event


def events(log: str, name: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.splitlines()) if line["event"] == name]


def test_the_log_tells_why_the_server_is_not_ready(cluster: Cluster) -> None:
    url = cluster.create_database("blocked")
    migrate(url)
    with ServerProcess(url) as server, cluster.connect() as admin:
        admin.execute("ALTER DATABASE blocked ALLOW_CONNECTIONS false")
        found = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'blocked'"
        admin.execute(found.encode())
        event = wait_for_event(server, "not ready")
    assert event["reason"] == "StoreUnavailable"
    assert 'database "blocked" is not currently accepting connections' in event["detail"]


@pytest.fixture(scope="module")
def granted(cluster: Cluster) -> str:
    """The URL of a role that may read and write, but owns nothing."""
    migrate(cluster.create_database("granted"))
    with cluster.connect("granted") as admin:
        admin.execute("CREATE ROLE serving LOGIN")
        admin.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO serving")
    return url_of(cluster, "serving", "granted")


@pytest.mark.usefixtures("granted")
@pytest.mark.parametrize("command", [SERVE, PURGE], ids=lambda command: command[0])
def test_a_role_that_may_only_read_cannot_write(tmp_path: Path, cluster: Cluster, command: tuple[str, ...]) -> None:
    with cluster.connect("granted") as admin:
        admin.execute("CREATE ROLE reading LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reading")
        try:
            line = refused(tmp_path, url_of(cluster, "reading", "granted"), command)
        finally:
            admin.execute("DROP OWNED BY reading; DROP ROLE reading")
    assert line == f"--database: {UNUSABLE} assignment"


@pytest.mark.parametrize(
    ("record_id", "lost"),
    [("t1", "REVOKE INSERT ON request FROM serving"), ("t2", "ALTER TABLE request RENAME TO request_of_before")],
)
def test_a_server_that_may_no_longer_write_is_not_ready_until_it_may(
    cluster: Cluster, granted: str, record_id: str, lost: str
) -> None:
    with (
        ServerProcess(granted) as server,
        closing(Client(server.address)) as client,
        cluster.connect("granted") as admin,
    ):
        admin.execute(lost.encode())
        try:
            assert refused_call(People(client, "Therapist").create, record_id).reason == "STORE_UNAVAILABLE"
            event = wait_for_event(server, "not ready")
        finally:
            admin.execute("ALTER TABLE IF EXISTS request_of_before RENAME TO request")
            admin.execute("GRANT INSERT ON request TO serving")
        assert event["detail"] == f"{UNUSABLE} request"
        wait_for_event(server, "ready")
        assert People(client, "Therapist").create(record_id).therapist_id == record_id


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (SERVE, f"{UNUSABLE} patient"),
        (("export", "all.jsonl"), 'affected by row-level security policy for table "patient"'),
    ],
    ids=["serve", "export"],
)
def test_a_policy_that_hides_rows_is_refused(
    tmp_path: Path, cluster: Cluster, granted: str, command: tuple[str, ...], words: str
) -> None:
    with cluster.connect("granted") as admin:
        admin.execute("ALTER TABLE patient ENABLE ROW LEVEL SECURITY")
        try:
            assert words in refused(tmp_path, granted, command)
        finally:
            admin.execute("ALTER TABLE patient DISABLE ROW LEVEL SECURITY")


@pytest.mark.parametrize("command", [("verify",), ("log", "head"), ("export", "-")], ids=lambda command: command[0])
def test_a_command_that_only_reads_runs_where_nothing_can_be_written(
    tmp_path: Path, cluster: Cluster, granted: str, command: tuple[str, ...]
) -> None:
    with cluster.connect() as admin:
        admin.execute("ALTER ROLE serving SET default_transaction_read_only = on")
        try:
            assert "session is read-only" in refused(tmp_path, granted, command)
            ended = caseload(tmp_path, *command, CASELOAD_DATABASE=f"{granted}?target_session_attrs=any")
        finally:
            admin.execute("ALTER ROLE serving RESET default_transaction_read_only")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_log_of_a_defect_has_the_sqlstate(cluster: Cluster) -> None:
    url = cluster.create_database("owned")
    migrate(url)
    with ServerProcess(url) as server:
        client = Client(server.address)
        with cluster.connect("owned") as admin:
            admin.execute("ALTER TABLE therapist ADD CHECK (therapist_id <> 't1')")
        with pytest.raises(Exception, match="error_id"):
            People(client, "Therapist").create("t1")
        client.close()
        [event] = events(server.stop()[1], "call failed")
    assert event["sqlstate"] == "23514"


def test_the_log_of_a_lost_connection_has_the_sqlstate(cluster: Cluster) -> None:
    url = cluster.create_database("read_only")
    migrate(url)
    with ServerProcess(f"{url}?target_session_attrs=any") as server, cluster.connect() as admin:
        admin.execute("ALTER DATABASE read_only SET default_transaction_read_only = on")
        found = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'read_only'"
        admin.execute(found.encode())
        event = wait_for_event(server, "not ready")
    assert (event["sqlstate"], event["detail"]) == ("25006", "the database accepts no writes")
