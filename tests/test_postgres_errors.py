"""How PostgreSQL fails, seen from the other end of the wire; and that none of its words come out."""

import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from grpc import StatusCode
from structlog.testing import capture_logs

from service.config import Config
from service.opening import open_store
from service.server import clock
from service.store import PATIENT, postgres, postgres_migrate
from service.store.postgres import Defect, PostgresDatabase
from tests.locking import holding_the_lock
from tests.postgres.cluster import QUICK, Cluster, NoPostgres
from tests.running import refusal
from tests.services.calling import People, everything_said, refused
from tests.services.provoking import FAILURES, assert_told
from tests.services.world import CANARY, World, world_on
from tests.store.standby import await_commits
from tests.store.steps import CALL
from tests.waiting import eventually

REPLICATING = {**QUICK, "max_wal_senders": "2", "wal_level": "replica"}
IMPATIENT = "?options=-c%20lock_timeout%3D50ms"
FULL = """
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file for %', NEW.display_name USING ERRCODE = '53100'; END $$;
CREATE TRIGGER no_room BEFORE INSERT ON patient FOR EACH ROW EXECUTE FUNCTION no_room()"""
NO_CANARIES = f"ALTER TABLE patient ADD CONSTRAINT no_canaries CHECK (email NOT LIKE '%{CANARY}%') NOT VALID"


class Broken(NamedTuple):
    """A server, and the cluster behind it, which no other test uses meanwhile."""

    world: World
    cluster: Cluster
    database: str
    """Its name in the cluster."""

    @property
    def patients(self) -> People:
        return self.world.patients

    @property
    def url(self) -> str:
        return self.cluster.url(self.database)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One that may be stopped."""
    try:
        made = Cluster(REPLICATING)
    except NoPostgres as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def broken(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    monkeypatch.setattr(postgres, "_PATIENCE_SECONDS", 0.2)
    postgres_migrate.migrate(cluster.create_database("caseload"))
    try:
        with world_on(cluster.url("caseload") + IMPATIENT) as world:
            store: Any = world.server._store
            store._database._commit_seconds = 0.2
            yield Broken(world, cluster, "caseload")
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
    return next(broken.world.clinic.watch())


def outcome_unknown(broken: Broken) -> object:
    """A commit waits for a standby that is not there."""
    wait_for_nobody(broken.cluster)
    return broken.patients.create("p2", display_name=CANARY)


def wait_for_nobody(cluster: Cluster) -> None:
    """From now on every commit does."""
    cluster.configure("synchronous_standby_names", "nobody")
    await_commits(cluster, waiting=True)


def full(broken: Broken) -> object:
    run(broken, FULL)
    return broken.patients.create("p2", display_name=CANARY)


WAYS: dict[str, Callable[[Broken], object]] = {
    "STORE_BUSY": busy,
    "STORE_UNAVAILABLE": unavailable,
    "STORE_UNAVAILABLE by watch": unavailable_to_watch,
    "OUTCOME_UNKNOWN": outcome_unknown,
    "STORE_FULL": full,
}


@pytest.mark.parametrize("way", FAILURES)
def test_a_failure_of_postgresql_is_told_with_its_code_and_details_and_no_value(broken: Broken, way: str) -> None:
    assert_told(way, lambda: WAYS[way](broken))


def test_after_a_stopped_postgresql_calls_work_again_and_nothing_is_half_written(broken: Broken) -> None:
    head = broken.patients.head()
    assert refused(unavailable, broken).code == StatusCode.UNAVAILABLE
    broken.cluster.start()
    assert refused(broken.patients.get, "p2").reason == "PATIENT_NOT_FOUND"
    assert broken.patients.head() == head
    broken.patients.create("p2")
    assert broken.patients.ids(broken.patients.call("List")) == ["p1", "p2"]


def test_a_full_disk_refuses_writes_and_not_reads_until_there_is_room(broken: Broken) -> None:
    assert refused(full, broken).reason == "STORE_FULL"
    assert broken.patients.ids(broken.patients.call("List")) == ["p1"]
    run(broken, "DROP TRIGGER no_room ON patient")
    assert broken.patients.create("p2").patient_id == "p2"


def await_noticed(broken: Broken) -> None:
    """Until the server sees that the commit waits: in its first two seconds it counts as one on its way."""
    database: Any = broken.world.server._store._database
    with broken.cluster.connect(broken.database) as watching:
        eventually(lambda: watching.execute(postgres._WAITING_COMMITS).fetchall())
    eventually(lambda: database._commits_wait)


def test_reads_go_on_while_a_commit_waits_for_a_standby_and_show_nothing_of_it(broken: Broken) -> None:
    assert refused(outcome_unknown, broken).reason == "OUTCOME_UNKNOWN"
    assert broken.patients.ids(broken.patients.call("List")) == ["p1"]
    await_noticed(broken)
    assert refused(broken.patients.create, "p3").reason == "STORE_UNAVAILABLE"
    broken.cluster.configure("synchronous_standby_names", "")


def test_what_postgresql_says_of_a_row_is_neither_answered_nor_logged(
    broken: Broken, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its DETAIL of a broken CHECK quotes the whole row."""
    caplog.set_level(logging.DEBUG)
    run(broken, NO_CANARIES)
    with capture_logs() as lines, pytest.raises(Exception, match="defect") as caught:
        broken.patients.create("p2", display_name="Bob", email=f"{CANARY}@example.org", annotations={"k": CANARY})
    assert refusal(caught.value).reason == "INTERNAL"  # type: ignore[arg-type]
    assert [line["type"] for line in lines] == ["Defect"]
    printed = capfd.readouterr()
    assert CANARY not in f"{everything_said(caught.value)}{lines}{printed.out}{printed.err}{caplog.text}"


def chain(error: BaseException | None) -> list[BaseException]:
    """An error, what caused it and what was handled when it was raised, all the way."""
    if error is None:
        return []
    return [error, *chain(error.__cause__), *chain(error.__context__)]


def test_of_a_broken_rule_only_the_sqlstate_and_the_constraint_leave_the_store(broken: Broken) -> None:
    run(broken, NO_CANARIES)
    store = open_store(Config(database=broken.url), clock)
    with pytest.raises(Defect) as caught:
        store.create(PATIENT, "p2", {"display_name": "Bob", "email": f"{CANARY}@example.org"}, CALL)
    store.close()
    assert caught.value.args == ("23514", "no_canaries")
    assert_silent(caught.value)


def rows_of_a_snapshot(database: PostgresDatabase, sql: str) -> None:
    with database.reading() as transaction:
        list(transaction.rows(sql, {"limit": 1}))


def runs_in_a_snapshot(database: PostgresDatabase, sql: str) -> None:
    with database.reading() as transaction:
        transaction.run(sql)


STATEMENTS: dict[str, Callable[[PostgresDatabase, str], object]] = {
    "read": lambda database, sql: database.read(sql),
    "write": lambda database, sql: database.write(lambda transaction: transaction.run(sql)),
    "rows of a snapshot": rows_of_a_snapshot,
    "run in a snapshot": runs_in_a_snapshot,
}


@pytest.mark.parametrize("way", STATEMENTS)
def test_of_a_failed_statement_only_the_sqlstate_leaves_the_store(broken: Broken, way: str) -> None:
    sql = f"SELECT CAST('{CANARY}' AS INTEGER)"  # which its error quotes
    database = PostgresDatabase(broken.url)
    with pytest.raises(Defect) as caught:
        STATEMENTS[way](database, sql)
    database.close()
    assert caught.value.args == ("22P02", None)
    assert_silent(caught.value)


def assert_silent(error: BaseException) -> None:
    said = [*map(repr, chain(error)), *traceback.format_exception(error)]
    assert [one for one in said if CANARY in one and "test_" not in one] == []
    assert [type(one).__module__ for one in chain(error) if type(one).__module__.startswith("psycopg")] == []
