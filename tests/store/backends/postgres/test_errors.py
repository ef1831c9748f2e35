"""PostgreSQL failures as a client sees them; no message of PostgreSQL reaches the client."""

import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from caseload_server.clock import now_us as clock
from caseload_server.config import Config
from caseload_server.store import PATIENT
from caseload_server.store.backends import full_disk
from caseload_server.store.backends.factory import open_store
from caseload_server.store.backends.postgres import driver_errors
from caseload_server.store.backends.postgres import migrate as postgres_migrate
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.backends.postgres.driver_errors import UnexpectedDatabaseError
from caseload_server.store.backends.protocol import Query
from grpc import StatusCode
from structlog.testing import capture_logs

from tests.api.client_calls import People, full_error_text, refused
from tests.api.error_scenarios import FAILURES, assert_error_matches
from tests.api.fault_injection import CANARY, FaultyServer, faulty_server
from tests.store.standby import await_commits
from tests.store.store_calls import CALL
from tests.support.postgres.cluster import QUICK, Cluster, NoPostgres
from tests.support.servers import refusal
from tests.support.waiting import eventually
from tests.support.write_lock import holding_the_lock

REPLICATING = {**QUICK, "max_wal_senders": "2", "wal_level": "replica"}
IMPATIENT = "?options=-c%20lock_timeout%3D50ms"
FULL = """
CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file for %', NEW.display_name USING ERRCODE = '53100'; END $$;
CREATE OR REPLACE TRIGGER no_room BEFORE INSERT ON patient FOR EACH ROW EXECUTE FUNCTION no_room()"""
DEFERRED = "AFTER INSERT ON patient DEFERRABLE INITIALLY DEFERRED"
LONG_WAIT = b"""
SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND now() - state_change > interval '2s'"""
NO_CANARIES = f"ALTER TABLE patient ADD CONSTRAINT no_canaries CHECK (email NOT LIKE '%{CANARY}%') NOT VALID"


class Broken(NamedTuple):
    """A server and its own cluster, which no other test uses at the same time."""

    faulty: FaultyServer
    cluster: Cluster
    database: str
    """The database's name in the cluster."""

    @property
    def patients(self) -> People:
        return self.faulty.patients

    @property
    def url(self) -> str:
        return self.cluster.url(self.database)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster that a test may stop."""
    try:
        made = Cluster(REPLICATING)
    except NoPostgres as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def broken(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    monkeypatch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", 0.2)
    postgres_migrate.migrate(cluster.create_database("caseload"))
    try:
        with faulty_server(cluster.url("caseload") + IMPATIENT) as faulty:
            store: Any = faulty.server.store
            store._database._writer.commit_timeout_seconds = 0.2
            yield Broken(faulty, cluster, "caseload")
            if not cluster.answers():
                cluster.start()
            cluster.configure("synchronous_standby_names", "")
    finally:
        cluster.drop_database("caseload")


def run(broken: Broken, sql: str) -> None:
    with broken.cluster.connect(broken.database) as connection:
        connection.execute(sql.encode())


def busy(broken: Broken) -> object:
    with holding_the_lock(broken.url):
        return broken.patients.create("p2", display_name=CANARY)


def unavailable(broken: Broken) -> object:
    broken.cluster.stop("immediate")
    return broken.patients.create("p2", display_name=CANARY)


def unavailable_to_watch(broken: Broken) -> object:
    broken.cluster.stop("immediate")
    return next(broken.faulty.api.watch())


def outcome_unknown(broken: Broken) -> object:
    """A commit waits for a missing standby."""
    await_missing_standby(broken.cluster)
    return broken.patients.create("p2", display_name=CANARY)


def await_missing_standby(cluster: Cluster) -> None:
    """Makes every later commit wait for a missing standby."""
    cluster.configure("synchronous_standby_names", "missing")
    await_commits(cluster, waiting=True)


def full(broken: Broken) -> object:
    run(broken, FULL)
    return broken.patients.create("p2", display_name=CANARY)


def full_in_the_commit(broken: Broken) -> object:
    deferred = FULL.replace("OR REPLACE TRIGGER", "CONSTRAINT TRIGGER").replace("BEFORE INSERT ON patient", DEFERRED)
    run(broken, f"DROP TRIGGER IF EXISTS no_room ON patient; {deferred}")
    return broken.patients.create("p2", display_name=CANARY)


WAYS: dict[str, Callable[[Broken], object]] = {
    "STORE_BUSY": busy,
    "STORE_UNAVAILABLE": unavailable,
    "STORE_UNAVAILABLE by watch": unavailable_to_watch,
    "OUTCOME_UNKNOWN": outcome_unknown,
    "STORE_FULL": full,
}


@pytest.mark.slow
@pytest.mark.parametrize("way", FAILURES)
def test_a_postgresql_failure_returns_a_code_and_details_without_values(broken: Broken, way: str) -> None:
    assert_error_matches(way, lambda: WAYS[way](broken))


def test_calls_work_again_after_postgresql_restarts_without_partial_writes(broken: Broken) -> None:
    head = broken.patients.head()
    assert refused(unavailable, broken).code == StatusCode.UNAVAILABLE
    broken.cluster.start()
    assert refused(broken.patients.get, "p2").reason == "PATIENT_NOT_FOUND"
    assert broken.patients.head() == head
    broken.patients.create("p2")
    assert broken.patients.ids(broken.patients.call("List")) == ["p1", "p2"]


@pytest.mark.parametrize("full", [full, full_in_the_commit])
def test_a_full_disk_rejects_writes_but_not_reads_until_space_is_freed(
    broken: Broken, monkeypatch: pytest.MonkeyPatch, full: Callable[[Broken], object]
) -> None:
    monkeypatch.setattr(full_disk, "QUIET_SECONDS", 0.0)
    with capture_logs() as logged:
        for _ in range(2):
            assert refused(full, broken).reason == "STORE_FULL"
        assert broken.patients.ids(broken.patients.call("List")) == ["p1"]
        run(broken, "DROP TRIGGER no_room ON patient")
        assert broken.patients.create("p2").patient_id == "p2"
        eventually(lambda: len(logged) > 1)
    assert [line["event"] for line in logged] == ["database disk full", "database disk has space again"]


def await_noticed(broken: Broken) -> None:
    """Waits until the server knows that the commit waits. In its first two seconds it does not."""
    database: Any = broken.faulty.server.store._database
    with broken.cluster.connect(broken.database) as watching:
        eventually(lambda: watching.execute(LONG_WAIT).fetchall())
    eventually(lambda: database._writer.commits_stalled)


@pytest.mark.slow
def test_reads_continue_without_uncommitted_data_while_a_commit_waits_for_a_standby(broken: Broken) -> None:
    assert refused(outcome_unknown, broken).reason == "OUTCOME_UNKNOWN"
    assert broken.patients.ids(broken.patients.call("List")) == ["p1"]
    await_noticed(broken)
    assert refused(broken.patients.create, "p3").reason == "STORE_UNAVAILABLE"
    broken.cluster.configure("synchronous_standby_names", "")


def test_the_detail_of_a_postgresql_error_is_neither_returned_nor_logged(
    broken: Broken, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its DETAIL of a broken CHECK quotes the whole row."""
    caplog.set_level(logging.DEBUG)
    run(broken, NO_CANARIES)
    with capture_logs() as lines, pytest.raises(Exception, match="Internal error") as caught:
        broken.patients.create("p2", display_name="Bob", email=f"{CANARY}@example.org", annotations={"k": CANARY})
    assert refusal(caught.value).reason == "INTERNAL"  # type: ignore[arg-type]
    assert [line["type"] for line in lines] == ["UnexpectedDatabaseError"]
    printed = capfd.readouterr()
    assert CANARY not in f"{full_error_text(caught.value)}{lines}{printed.out}{printed.err}{caplog.text}"


def chain(error: BaseException | None) -> list[BaseException]:
    """An error with all its causes and contexts."""
    if error is None:
        return []
    return [error, *chain(error.__cause__), *chain(error.__context__)]


def test_a_constraint_violation_exposes_only_the_sqlstate_and_the_constraint(broken: Broken) -> None:
    run(broken, NO_CANARIES)
    store = open_store(Config(database=broken.url), clock)
    with pytest.raises(UnexpectedDatabaseError) as caught:
        store.create(PATIENT, "p2", {"display_name": "Bob", "email": f"{CANARY}@example.org"}, CALL)
    store.close()
    assert caught.value.args == ("23514", "no_canaries")
    assert_silent(caught.value)


def rows_of_a_snapshot(database: PostgresDatabase, sql: str) -> None:
    with database.snapshot() as transaction:
        list(transaction.rows(Query(sql, {"limit": 1})))


def runs_in_a_snapshot(database: PostgresDatabase, sql: str) -> None:
    with database.snapshot() as transaction:
        transaction.run(sql)


STATEMENTS: dict[str, Callable[[PostgresDatabase, str], object]] = {
    "read": lambda database, sql: database.read(sql),
    "write": lambda database, sql: database.write(lambda transaction: transaction.run(sql)),
    "rows of a snapshot": rows_of_a_snapshot,
    "run in a snapshot": runs_in_a_snapshot,
}


@pytest.mark.parametrize("way", STATEMENTS)
def test_a_failed_statement_exposes_only_the_sqlstate(broken: Broken, way: str) -> None:
    sql = f"SELECT CAST('{CANARY}' AS INTEGER)"  # the driver's error quotes the value
    database = PostgresDatabase(broken.url)
    with pytest.raises(UnexpectedDatabaseError) as caught:
        STATEMENTS[way](database, sql)
    database.close()
    assert caught.value.args == ("22P02", None)
    assert_silent(caught.value)


def assert_silent(error: BaseException) -> None:
    said = [*map(repr, chain(error)), *traceback.format_exception(error)]
    assert [one for one in said if CANARY in one and "test_" not in one] == []
    assert [type(one).__module__ for one in chain(error) if type(one).__module__.startswith("psycopg")] == []
