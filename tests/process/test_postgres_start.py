"""On a PostgreSQL that it cannot use, or that is not migrated, a start says so in one line; and `caseload migrate`."""

import secrets
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from caseload_server.config import has_password
from caseload_server.domain.requests import Delete
from caseload_server.store import PATIENT, RelationshipStore
from caseload_server.store.backends.migrations import migrations
from caseload_server.store.backends.postgres import migrate as postgres_migrate
from caseload_server.store.backends.postgres.database import PostgresDatabase

from tests.api.client_calls import People
from tests.process.command_runner import DRY_RUN, SECRET, SERVE, STEPS, caseload, refusal
from tests.process.worker_processes import children
from tests.store.store_calls import CALL, TABLES, make, run
from tests.support.postgres.cluster import Server
from tests.support.servers import Client, ServerProcess

NOBODY_THERE = f"postgresql://{SECRET}@127.0.0.1:1/{SECRET}"
PURGE = ("purge", "--changes-before", "30d")


@pytest.fixture
def empty(postgres: Server) -> Iterator[str]:
    """The URL of a database without a table."""
    name = f"caseload_test_{secrets.token_hex(8)}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


def with_password(url: str) -> str:
    """The same; a PostgreSQL that trusts who asks looks at no password."""
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
    """The one line, less the setting, which is always the same."""
    line = refusal(folder, *arguments, CASELOAD_DATABASE=database)
    assert line.startswith("--database: ")
    assert SECRET not in line
    return line


@pytest.mark.parametrize("command", [SERVE, ("migrate",), DRY_RUN, PURGE], ids=lambda command: command[0])
def test_a_postgresql_that_cannot_be_reached_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert "cannot be reached" in refused(tmp_path, *command, database=NOBODY_THERE)


@pytest.mark.parametrize("part", ["?no_such_parameter=1", "?sslmode=perhaps", ":no-port/db"])
def test_a_url_that_is_none_is_refused(tmp_path: Path, part: str) -> None:
    refused(tmp_path, *SERVE, database=f"postgresql://{SECRET}@127.0.0.1{part}")


def test_a_database_that_is_not_there_is_refused(tmp_path: Path, postgres: Server) -> None:
    assert "cannot be reached" in refused(tmp_path, *SERVE, database=postgres.url(SECRET))


@pytest.mark.parametrize("command", [SERVE, PURGE], ids=lambda command: command[0])
def test_a_database_that_is_not_migrated_is_refused_with_the_command_to_run(
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
def test_a_schema_of_another_version_is_refused(
    tmp_path: Path, empty: str, command: tuple[str, ...], change: str, words: str
) -> None:
    assert caseload(tmp_path, "migrate", CASELOAD_DATABASE=empty).returncode == 0
    changed(empty, change)
    assert words in refused(tmp_path, *command, database=empty)


@pytest.mark.parametrize("table", ["theirs (x INTEGER)", "migration (x INTEGER)"])
@pytest.mark.parametrize("command", [SERVE, ("migrate",), DRY_RUN], ids=" ".join)
def test_a_database_of_another_application_is_refused_and_left_as_it_was(
    tmp_path: Path, empty: str, command: tuple[str, ...], table: str
) -> None:
    changed(empty, f"CREATE TABLE {table}")
    before = tables(empty)
    assert "another application" in refused(tmp_path, *command, database=empty)
    assert tables(empty) == before


@pytest.mark.parametrize("command", ["serve", "migrate", "purge"])
def test_a_password_in_a_flag_is_refused_for_every_user_of_the_machine_can_read_it(
    tmp_path: Path, postgres_url: str, command: str
) -> None:
    for url in (with_password(postgres_url), f"{postgres_url}?password={SECRET}"):
        line = refusal(tmp_path, command, "--database", url)
        assert "password" in line
        assert "CASELOAD_DATABASE" in line
        assert SECRET not in line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_password_in_the_variable_is_taken_and_told_to_nobody(postgres_url: str, workers: str) -> None:
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
    assert password not in arguments + log


def test_migrate_lists_what_it_ran_and_runs_it_once(tmp_path: Path, empty: str) -> None:
    assert caseload(tmp_path, "migrate", CASELOAD_DATABASE=empty).stdout.splitlines() == STEPS
    again = caseload(tmp_path, "migrate", CASELOAD_DATABASE=empty)
    assert (again.returncode, again.stdout) == (0, "")
    after = caseload(tmp_path, *DRY_RUN, CASELOAD_DATABASE=empty)
    assert (after.returncode, after.stdout) == (0, "")


def test_a_database_of_the_first_step_keeps_its_rows_and_a_store_that_is_open_goes_on(empty: str) -> None:
    initial, *later = migrations("postgres")
    postgres_migrate.migrate(empty, [initial])
    store = RelationshipStore(PostgresDatabase(empty), lambda: 1)
    kept, deleted = make(store, PATIENT, ""), make(store, PATIENT, "")
    store.delete(PATIENT, Delete(deleted.patient_id), CALL)
    before = [run(store, f"SELECT * FROM {table}") for table in TABLES if table != "purged"]
    assert postgres_migrate.migrate(empty) == later
    assert [run(store, f"SELECT * FROM {table}") for table in TABLES if table != "purged"] == before
    assert list(store.purge_records(PATIENT, 2)) == [(1, 0)]
    assert store.get(PATIENT, kept.patient_id) == kept
    store.close()


def test_a_dry_run_lists_what_would_run_and_makes_nothing(tmp_path: Path, empty: str) -> None:
    ended = caseload(tmp_path, *DRY_RUN, CASELOAD_DATABASE=empty)
    assert (ended.returncode, ended.stdout.splitlines()) == (0, STEPS)
    assert tables(empty) == []


def test_of_several_that_migrate_at_once_one_does_it_and_the_others_find_it_done(tmp_path: Path, empty: str) -> None:
    def migrate(_: int) -> "subprocess.CompletedProcess[str]":
        return caseload(tmp_path, "migrate", CASELOAD_DATABASE=empty)

    with ThreadPoolExecutor(4) as threads:
        ended = list(threads.map(migrate, range(4)))
    assert [one.returncode for one in ended] == [0] * 4, [one.stderr for one in ended]
    assert sorted(one.stdout for one in ended) == ["", "", "", "".join(f"{step}\n" for step in STEPS)]
    with ServerProcess(empty) as server:
        assert server.stop()[0] == 0


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_backup_and_restore_point_to_what_postgres_has_for_that(tmp_path: Path, command: str) -> None:
    assert refused(tmp_path, command, "copy.db", database=NOBODY_THERE).startswith(
        "--database: is PostgreSQL, which has its own means"
    )
