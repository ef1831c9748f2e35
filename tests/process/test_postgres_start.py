"""Starts on an unusable or unmigrated PostgreSQL, which print one line; and `caseload migrate`."""

import secrets
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from caseload_server.config import has_password
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.backends.postgres import migrate as postgres_migrate
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.portability.chain_check import broken_chain

from tests.api.client_calls import People
from tests.process.command_runner import DRY_RUN, SECRET, SERVE, STEPS, caseload, refusal
from tests.process.worker_processes import children
from tests.store.first_version import COLUMNS, PRUNED, WRITES
from tests.store.store_calls import run
from tests.support.postgres.cluster import Server
from tests.support.servers import Client, ServerProcess

UNREACHABLE = f"postgresql://{SECRET}@127.0.0.1:1/{SECRET}"
UNUSABLE = "a parameter of the URL, or a variable such as PGCONNECT_TIMEOUT, has a value that libpq cannot use"
PURGE = ("purge", "--changes-before", "30d")


@pytest.fixture
def empty(postgres: Server) -> Iterator[str]:
    """The URL of a database without a table."""
    name = f"caseload_test_{secrets.token_hex(8)}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


def with_password(url: str) -> str:
    """The URL with a password, which a PostgreSQL with trust authentication ignores."""
    if has_password(url):
        return url
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}:{SECRET}@{host}").geturl()


def changed(url: str, sql: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(sql.encode())


def tables(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        return [name for (name,) in found]


def refused(folder: Path, *arguments: str, database: str) -> str:
    """The error line without the setting's name, which is always the same."""
    line = refusal(folder, *arguments, CASELOAD_DATABASE=database)
    assert line.startswith("--database: ")
    assert SECRET not in line
    return line


@pytest.mark.parametrize("command", [SERVE, ("migrate",), DRY_RUN, PURGE], ids=lambda command: command[0])
def test_an_unreachable_postgresql_is_reported(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert "cannot be reached" in refused(tmp_path, *command, database=UNREACHABLE)


@pytest.mark.parametrize("part", ["?no_such_parameter=1", "?sslmode=perhaps", ":no-port/db"])
def test_an_invalid_url_is_rejected(tmp_path: Path, part: str) -> None:
    refused(tmp_path, *SERVE, database=f"postgresql://{SECRET}@127.0.0.1{part}")


def test_an_unusable_variable_of_libpq_is_not_called_a_wrong_url(tmp_path: Path) -> None:
    line = refusal(tmp_path, "verify", CASELOAD_DATABASE=UNREACHABLE, PGCONNECT_TIMEOUT=SECRET)
    assert line == f"--database: {UNUSABLE}"
    unknown = refusal(tmp_path, "verify", CASELOAD_DATABASE=f"{UNREACHABLE}?sslmod={SECRET}")
    assert unknown == "--database: is not a PostgreSQL URL, or has a parameter that libpq does not know"


def test_a_missing_database_is_reported(tmp_path: Path, postgres: Server) -> None:
    assert 'database "no_such_database" does not exist' in refused(
        tmp_path, *SERVE, database=postgres.url("no_such_database")
    )


@pytest.mark.parametrize("command", [SERVE, PURGE], ids=lambda command: command[0])
def test_an_unmigrated_database_is_rejected_with_the_command_to_run(
    tmp_path: Path, empty: str, command: tuple[str, ...]
) -> None:
    assert "run caseload migrate" in refused(tmp_path, *command, database=empty)
    assert tables(empty) == []


NEWER = "INSERT INTO migration VALUES ('9999_later', '')"
OTHER_TEXT = "UPDATE migration SET checksum = 'edited'"


@pytest.mark.parametrize(
    ("command", "change", "words"),
    [
        (SERVE, NEWER, "newer"),
        (("migrate",), NEWER, "newer"),
        (DRY_RUN, NEWER, "newer"),
        (SERVE, OTHER_TEXT, "not the one of this version"),
        (("migrate",), OTHER_TEXT, "not the one of this version"),
    ],
)
def test_a_schema_of_another_version_is_rejected(
    tmp_path: Path, empty: str, command: tuple[str, ...], change: str, words: str
) -> None:
    assert caseload(tmp_path, "migrate", CASELOAD_DATABASE=empty).returncode == 0
    changed(empty, change)
    assert words in refused(tmp_path, *command, database=empty)


@pytest.mark.parametrize("table", ["theirs (x INTEGER)", "migration (x INTEGER)"])
@pytest.mark.parametrize("command", [SERVE, ("migrate",), DRY_RUN], ids=" ".join)
def test_a_database_of_another_application_is_rejected_and_unchanged(
    tmp_path: Path, empty: str, command: tuple[str, ...], table: str
) -> None:
    changed(empty, f"CREATE TABLE {table}")
    before = tables(empty)
    assert "another application" in refused(tmp_path, *command, database=empty)
    assert tables(empty) == before


@pytest.mark.parametrize("command", ["serve", "migrate", "purge"])
def test_a_password_in_a_flag_is_rejected(tmp_path: Path, postgres_url: str, command: str) -> None:
    for url in (with_password(postgres_url), f"{postgres_url}?password={SECRET}"):
        line = refusal(tmp_path, command, "--database", url)
        assert "password" in line
        assert "CASELOAD_DATABASE" in line
        assert SECRET not in line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_password_in_the_variable_is_used_and_never_printed(postgres_url: str, workers: str) -> None:
    url = with_password(postgres_url)
    with ServerProcess(url, "--workers", workers) as server:
        client = Client(server.address)
        assert People(client, "Therapist").create("t1").therapist_id == "t1"
        client.close()
        processes = (server.process.pid, *children(server.process.pid))
        arguments = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in processes)
        code, log = server.stop()
    assert code == 0
    password = urlsplit(url).password
    assert password
    assert f":{password}" not in arguments + log  # with the colon: it may be a common word


def test_migrate_lists_its_migrations_and_runs_each_once(tmp_path: Path, empty: str) -> None:
    assert caseload(tmp_path, "migrate", CASELOAD_DATABASE=empty).stdout.splitlines() == STEPS
    again = caseload(tmp_path, "migrate", CASELOAD_DATABASE=empty)
    assert (again.returncode, again.stdout) == (0, "")
    after = caseload(tmp_path, *DRY_RUN, CASELOAD_DATABASE=empty)
    assert (after.returncode, after.stdout) == (0, "")


def test_migrating_the_first_schema_keeps_rows_and_open_stores(empty: str) -> None:
    initial, *later = migrations("postgres")
    postgres_migrate.migrate(empty, [initial])
    store = RelationshipStore(PostgresDatabase(empty), lambda: 1)
    for statement in WRITES:
        run(store, statement)
    before = [run(store, f"SELECT {columns} FROM {table}") for table, columns in COLUMNS.items()]
    assert postgres_migrate.migrate(empty) == later
    assert [run(store, f"SELECT {columns} FROM {table}") for table, columns in COLUMNS.items()] == before
    assert list(store.purger.purge_records(PATIENT, 2)) == [(1, 0)]
    assert store.get(PATIENT, "kept").etag == "e"
    with store._database.snapshot() as transaction:
        assert list(broken_chain(transaction)) == []
    store.close()


def test_versions_are_complete_since_the_latest_change_though_the_log_was_pruned(empty: str) -> None:
    postgres_migrate.migrate(empty, migrations("postgres")[:1])
    with closing(PostgresDatabase(empty)) as database:
        store = RelationshipStore(database, lambda: 1)
        for statement in (*WRITES, *PRUNED):
            run(store, statement)
        postgres_migrate.migrate(empty)
        assert run(store, "SELECT versions_revision, versions_us FROM store") == [(2, 7)]


def test_a_dry_run_lists_pending_migrations_and_changes_nothing(tmp_path: Path, empty: str) -> None:
    ended = caseload(tmp_path, *DRY_RUN, CASELOAD_DATABASE=empty)
    assert (ended.returncode, ended.stdout.splitlines()) == (0, STEPS)
    assert tables(empty) == []


def test_only_one_of_several_concurrent_migrations_does_the_work(tmp_path: Path, empty: str) -> None:
    def migrate(_: int) -> "subprocess.CompletedProcess[str]":
        return caseload(tmp_path, "migrate", CASELOAD_DATABASE=empty)

    with ThreadPoolExecutor(4) as threads:
        ended = list(threads.map(migrate, range(4)))
    assert [one.returncode for one in ended] == [0] * 4, [one.stderr for one in ended]
    assert sorted(one.stdout for one in ended) == ["", "", "", "".join(f"{step}\n" for step in STEPS)]
    with ServerProcess(empty) as server:
        assert server.stop()[0] == 0


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_backup_and_restore_refer_to_the_tools_of_postgresql(tmp_path: Path, command: str) -> None:
    assert refused(tmp_path, command, "copy.db", database=UNREACHABLE).startswith(
        "--database: is PostgreSQL: use base backups or pg_dump"
    )
