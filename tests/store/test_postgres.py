"""What holds of PostgreSQL: what is run again, what is settled, and what is never told."""

import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from caseload_server.domain import errors
from caseload_server.domain.requests import CallContext
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.postgres import connection_pool
from caseload_server.store.backends.postgres import database as postgres
from caseload_server.store.backends.postgres.database import PostgresDatabase, UnexpectedDatabaseError
from caseload_server.store.backends.protocol import Transaction

from tests.postgres.cluster import SAFE, Cluster
from tests.store.conftest import Clock
from tests.store.postgres_proxy import Cut, Proxy
from tests.store.steps import CALL, head, run

RAISE = """
CREATE FUNCTION failing(state TEXT) RETURNS BIGINT LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION USING ERRCODE = state; END $$"""


@pytest.fixture
def database(postgres_url: str) -> Iterator[PostgresDatabase]:
    opened = PostgresDatabase(postgres_url)
    yield opened
    opened.close()


@pytest.fixture
def store(database: PostgresDatabase, clock: Clock) -> RelationshipStore:
    return RelationshipStore(database, clock)


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    with Proxy(postgres_url) as between:
        yield between


@pytest.fixture
def cut_off(proxy: Proxy, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[RelationshipStore]:
    """A store whose connections go through the proxy, and that gives up early."""
    monkeypatch.setattr(postgres, "_RETRY_TIMEOUT_SECONDS", 0.5)
    database = PostgresDatabase(proxy.url)
    yield RelationshipStore(database, clock)
    database.close()


def names(store: RelationshipStore) -> list[str]:
    return [name for (name,) in run(store, "SELECT display_name FROM therapist ORDER BY display_name")]


def failing_once(then: str) -> Callable[[Transaction], int]:
    """Work whose first run ends in a statement that fails, and whose second does not."""
    runs: list[int] = []

    def work(transaction: Transaction) -> int:
        runs.append(1)
        transaction.run("UPDATE store SET head_revision = head_revision + 1")
        if len(runs) == 1:
            transaction.run(then)
        return len(runs)

    return work


@pytest.mark.parametrize("state", ["40001", "40P01", "57P01", "25006", "53300"])
def test_what_a_collision_or_a_lost_connection_undid_is_run_again(store: RelationshipStore, state: str) -> None:
    run(store, RAISE)
    assert store._database.write(failing_once(f"SELECT failing('{state}')")) == 2
    assert head(store) == 1


def test_a_connection_that_the_server_ends_is_replaced(store: RelationshipStore) -> None:
    assert store._database.write(failing_once("SELECT pg_terminate_backend(pg_backend_pid())")) == 2
    assert head(store) == 1


@pytest.mark.parametrize(("state", "kind"), [("55P03", errors.StoreBusy), ("53100", errors.StoreFull)])
def test_what_would_fail_again_is_refused_at_once(
    store: RelationshipStore, state: str, kind: type[errors.DomainError]
) -> None:
    run(store, RAISE)
    with pytest.raises(kind):
        store._database.write(failing_once(f"SELECT failing('{state}')"))
    assert head(store) == 0


def test_two_that_wait_for_each_other_both_get_their_turn(store: RelationshipStore) -> None:
    for record_id in ("a", "b"):
        store.create(THERAPIST, record_id, {"display_name": "Ada"}, CALL)
    met = threading.Barrier(2)

    def renaming(first: str, second: str) -> None:
        tries: list[int] = []

        def work(transaction: Transaction) -> None:
            transaction.run("UPDATE therapist SET email = :id WHERE therapist_id = :id", {"id": first})
            if not tries:
                met.wait(10)
            tries.append(1)
            transaction.run(
                "UPDATE therapist SET email = :first WHERE therapist_id = :id", {"id": second, "first": first}
            )

        store._database.write(work)

    other = threading.Thread(target=renaming, args=("a", "b"))
    other.start()
    renaming("b", "a")
    other.join(30)
    assert len({store.get(THERAPIST, record_id).email for record_id in ("a", "b")}) == 1


def test_reads_outlive_their_connections(proxy: Proxy, cut_off: RelationshipStore) -> None:
    cut_off.create(THERAPIST, "t", {"display_name": "Ada"}, CALL)
    cut_off.get(THERAPIST, "t")
    proxy.cut_all()
    assert cut_off.get(THERAPIST, "t").display_name == "Ada"


@pytest.mark.parametrize("request_id", ["", "5fe1f6a4-8c40-4ee9-9d0f-1b1c6a4b8c11"])
@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_write_whose_commit_was_cut_off_is_settled_and_done_once(
    proxy: Proxy, cut_off: RelationshipStore, cut: Cut, request_id: str
) -> None:
    proxy.cut_next_commit(cut)
    outcome = cut_off.create(THERAPIST, "", {"display_name": "Ada"}, CALL._replace(request_id=request_id))
    assert proxy.commits == 2
    assert outcome.revision == cut_off.keys.revision(1)
    assert cut_off.get(THERAPIST, outcome.record.therapist_id) == outcome.record
    assert names(cut_off) == ["Ada"]
    assert outcome.revision == cut_off.keys.revision(1)
    assert run(cut_off, "SELECT revision, request_id FROM change_set") == [(1, request_id)]


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_commit_that_nobody_can_be_asked_about_is_unknown(
    proxy: Proxy, cut_off: RelationshipStore, store: RelationshipStore, cut: Cut
) -> None:
    proxy.cut_next_commit(cut, refuse_after=True)
    with pytest.raises(errors.OutcomeUnknown):
        cut_off.create(THERAPIST, "", {"display_name": "Ada"}, CALL)
    assert names(store) == ([] if cut == "before" else ["Ada"])


def test_a_commit_that_no_connection_is_left_to_ask_about_is_unknown(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_pool, "ACQUIRE_TIMEOUT_SECONDS", 0.5)
    database = PostgresDatabase(proxy.url, connections=1)
    begun = threading.Event()

    def slow(_: Transaction) -> None:
        begun.set()
        time.sleep(0.3)

    def hold(_: Transaction) -> None:
        time.sleep(2)

    def next_in_line() -> None:
        begun.wait(10)
        database.write(hold)

    holder = threading.Thread(target=next_in_line)
    holder.start()
    proxy.cut_next_commit("after")
    with pytest.raises(errors.OutcomeUnknown):
        database.write(slow)
    holder.join(20)
    database.close()


def test_no_timeout_of_the_database_ends_a_commit(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET statement_timeout = '123ms'".encode())
        try:
            database = PostgresDatabase(postgres_url)
            assert database.write(lambda transaction: transaction.run("SHOW statement_timeout")) == [("0",)]
            database.close()
        finally:
            admin.execute(f"ALTER DATABASE {admin.info.dbname} RESET statement_timeout".encode())


def test_a_write_that_no_database_was_there_for_wrote_nothing(proxy: Proxy, cut_off: RelationshipStore) -> None:
    proxy.refuse()
    with pytest.raises(errors.StoreUnavailable):
        cut_off.create(THERAPIST, "", {"display_name": "Ada"}, CALL)


def test_two_at_once_under_one_request_id_write_once(store: RelationshipStore) -> None:
    named = CALL._replace(request_id="5fe1f6a4-8c40-4ee9-9d0f-1b1c6a4b8c11", fingerprint=b"the same")
    made: list[str] = []

    def create() -> None:
        made.append(store.create(THERAPIST, "", {"display_name": "Ada"}, named).record.therapist_id)

    callers = [threading.Thread(target=create) for _ in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert len(made) == 16
    assert len(set(made)) == 1
    assert head(store) == 1


def test_nothing_of_the_drivers_error_leaves_but_the_state_and_the_constraint(store: RelationshipStore) -> None:
    store.create(PATIENT, "p", {"display_name": "Canary-Name", "email": "canary@example.org"}, CALL)
    with pytest.raises(UnexpectedDatabaseError) as defect:
        run(store, "UPDATE patient SET status = 9")
    assert defect.value.args == ("23514", "patient_status_check")
    whole: list[BaseException | None] = [defect.value]
    while whole[-1] is not None:
        assert not isinstance(whole[-1], psycopg.Error)
        whole.append(whole[-1].__cause__ or whole[-1].__context__)


def test_connections_are_lent_in_the_order_of_asking(postgres_url: str) -> None:
    database = PostgresDatabase(postgres_url, connections=1)
    order: list[int] = []
    began = threading.Event()

    def slow(_: Transaction) -> None:
        began.set()
        time.sleep(0.3)

    def write(number: int) -> None:
        database.write(slow if not number else lambda _: order.append(number))

    writers = []
    for number in range(6):
        writers.append(threading.Thread(target=write, args=(number,)))
        writers[-1].start()
        began.wait(10)
        time.sleep(0.02)
    for writer in writers:
        writer.join(30)
    database.close()
    assert order == [1, 2, 3, 4, 5]


class Waiting:
    """A store whose commits wait for a standby that is not there."""

    def __init__(self, cluster: Cluster, url: str, clock: Clock) -> None:
        self.cluster = cluster
        self.database = PostgresDatabase(url, commit_timeout_seconds=0.3)
        self.store = RelationshipStore(self.database, clock)

    def stand_by(self, names: str) -> None:
        with self.cluster.connect() as admin:
            admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
            admin.execute("SELECT pg_reload_conf()")
        time.sleep(0.2)


@pytest.fixture
def waiting(clock: Clock) -> Iterator[Waiting]:
    from caseload_server.store.backends.postgres.migrate import migrate

    with Cluster(SAFE) as cluster:
        url = cluster.create_database("caseload")
        migrate(url)
        one = Waiting(cluster, url, clock)
        one.stand_by("nobody")
        yield one
        one.database.close()


def test_a_commit_that_waits_for_its_standby_is_unknown_and_never_cancelled(waiting: Waiting) -> None:
    store, named = waiting.store, CallContext("a", "/m", "5fe1f6a4-8c40-4ee9-9d0f-1b1c6a4b8c11", b"the same")
    began = time.monotonic()
    with pytest.raises(errors.OutcomeUnknown):
        store.create(THERAPIST, "t", {"display_name": "Ada"}, named)
    assert time.monotonic() - began < 2
    with pytest.raises(errors.StoreUnavailable):  # every other commit would wait as well
        store.create(THERAPIST, "u", {"display_name": "Ada"}, CALL)
    with pytest.raises(errors.TherapistNotFound):  # what could still be lost is shown to nobody
        store.get(THERAPIST, "t")
    time.sleep(2.5)  # a commit on its way is none that waits
    with pytest.raises(errors.StoreUnavailable):
        store.check()
    waiting.stand_by("")
    store.check()
    assert store.create(THERAPIST, "t", {"display_name": "Ada"}, named).revision == store.keys.revision(1)
    assert store.get(THERAPIST, "t").display_name == "Ada"


def test_a_commit_whose_wait_someone_ends_is_not_acknowledged(waiting: Waiting) -> None:
    waiting.database._commit_timeout_seconds = 10

    def cancel() -> None:
        with waiting.cluster.connect() as admin:
            for _ in range(100):
                found = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                if admin.execute(found.encode()).fetchall():
                    return
                time.sleep(0.02)

    someone = threading.Thread(target=cancel)
    someone.start()
    with pytest.raises(errors.OutcomeUnknown):
        waiting.store.create(THERAPIST, "t", {"display_name": "Ada"}, CALL)
    someone.join(30)
