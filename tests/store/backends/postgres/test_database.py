"""The PostgreSQL back end: retries, ambiguous commits, and errors that expose no values."""

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from caseload_server.domain import errors
from caseload_server.domain.requests import CallContext
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.postgres import connection_pool, driver_errors
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.backends.postgres.driver_errors import UnexpectedDatabaseError
from caseload_server.store.backends.protocol import Transaction

from tests.store.backends.postgres.proxy import Cut, Proxy
from tests.store.conftest import Clock
from tests.store.standby import await_commits
from tests.store.store_calls import CALL, head, run
from tests.support.postgres.cluster import SAFE, Cluster
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually, join

RAISE = """
CREATE FUNCTION failing(state TEXT) RETURNS BIGINT LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION USING ERRCODE = state; END $$"""


@pytest.fixture
def gives_up_early(cut_off: RelationshipStore, monkeypatch: pytest.MonkeyPatch) -> RelationshipStore:
    """The same store with short timeouts, for tests in which the database stays unreachable."""
    monkeypatch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", 0.5)
    return cut_off


def names(store: RelationshipStore) -> list[str]:
    return [name for (name,) in run(store, "SELECT display_name FROM therapist ORDER BY display_name")]


def failing_once(then: str) -> Callable[[Transaction], int]:
    """Work that fails in its first run and succeeds in its second."""
    runs: list[int] = []

    def work(transaction: Transaction) -> int:
        runs.append(1)
        transaction.run("UPDATE store SET head_revision = head_revision + 1")
        if len(runs) == 1:
            transaction.run(then)
        return len(runs)

    return work


@pytest.mark.parametrize("state", ["40001", "40P01", "57P01", "25006", "53300"])
def test_the_store_retries_a_write_after_a_conflict_or_a_lost_connection(store: RelationshipStore, state: str) -> None:
    run(store, RAISE)
    assert store._database.write(failing_once(f"SELECT failing('{state}')")) == 2
    assert head(store) == 1


def test_the_pool_replaces_a_connection_that_the_server_closed(store: RelationshipStore) -> None:
    assert store._database.write(failing_once("SELECT pg_terminate_backend(pg_backend_pid())")) == 2
    assert head(store) == 1


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("55P03", errors.StoreBusy),
        ("53100", errors.StoreFull),
        ("53000", errors.StoreUnavailable),  # no open files
        ("58030", errors.StoreUnavailable),  # a failing disk
        ("XX001", errors.StoreUnavailable),  # a damaged page
    ],
)
def test_the_store_does_not_retry_a_permanent_error(
    store: RelationshipStore, state: str, kind: type[errors.DomainError]
) -> None:
    run(store, RAISE)
    with pytest.raises(kind):
        store._database.write(failing_once(f"SELECT failing('{state}')"))
    assert head(store) == 0


def test_two_deadlocked_writes_both_succeed(store: RelationshipStore) -> None:
    for record_id in ("a", "b"):
        store.create(THERAPIST, record_id, {"display_name": "Ada"}, CALL)
    met = threading.Barrier(2)

    def renaming(first: str, second: str) -> None:
        tries: list[int] = []

        def work(transaction: Transaction) -> None:
            transaction.run("UPDATE therapist SET email = :id WHERE therapist_id = :id", {"id": first})
            if not tries:
                met.wait(HUNG_SECONDS)
            tries.append(1)
            transaction.run(
                "UPDATE therapist SET email = :first WHERE therapist_id = :id", {"id": second, "first": first}
            )

        store._database.write(work)

    other = threading.Thread(target=renaming, args=("a", "b"))
    other.start()
    renaming("b", "a")
    join(other)
    assert len({store.get(THERAPIST, record_id).email for record_id in ("a", "b")}) == 1


def test_reads_survive_lost_connections(proxy: Proxy, cut_off: RelationshipStore) -> None:
    cut_off.create(THERAPIST, "t", {"display_name": "Ada"}, CALL)
    cut_off.get(THERAPIST, "t")
    proxy.cut_all()
    assert cut_off.get(THERAPIST, "t").display_name == "Ada"


@pytest.mark.parametrize("request_id", ["", "5fe1f6a4-8c40-4ee9-9d0f-1b1c6a4b8c11"])
@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_write_whose_commit_lost_its_connection_is_done_exactly_once(
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
def test_a_commit_is_unknown_when_the_database_is_unreachable(
    proxy: Proxy, gives_up_early: RelationshipStore, store: RelationshipStore, cut: Cut
) -> None:
    proxy.cut_next_commit(cut, refuse_after=True)
    with pytest.raises(errors.OutcomeUnknown):
        gives_up_early.create(THERAPIST, "", {"display_name": "Ada"}, CALL)
    assert names(store) == ([] if cut == "before" else ["Ada"])


def test_a_commit_is_unknown_when_the_pool_is_exhausted(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    database = PostgresDatabase(proxy.url, connections=1)
    begun, goes_on = threading.Event(), threading.Event()

    def slow(_: Transaction) -> None:
        begun.set()
        eventually(lambda: database._writer.pool._waiters)
        monkeypatch.setattr(
            connection_pool, "ACQUIRE_TIMEOUT_SECONDS", 0.1
        )  # for the next acquire, not for callers that already wait

    def hold(_: Transaction) -> None:
        assert goes_on.wait(HUNG_SECONDS)

    def next_in_line() -> None:
        assert begun.wait(HUNG_SECONDS)
        database.write(hold)

    holder = threading.Thread(target=next_in_line)
    holder.start()
    proxy.cut_next_commit("after")
    with pytest.raises(errors.OutcomeUnknown):
        database.write(slow)
    goes_on.set()
    join(holder)
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


def test_a_write_without_a_database_writes_nothing(proxy: Proxy, gives_up_early: RelationshipStore) -> None:
    proxy.refuse()
    with pytest.raises(errors.StoreUnavailable):
        gives_up_early.create(THERAPIST, "", {"display_name": "Ada"}, CALL)


def test_two_concurrent_calls_with_one_request_id_write_once(store: RelationshipStore) -> None:
    named = CALL._replace(request_id="5fe1f6a4-8c40-4ee9-9d0f-1b1c6a4b8c11", fingerprint=b"the same")
    made: list[str] = []

    def create() -> None:
        made.append(store.create(THERAPIST, "", {"display_name": "Ada"}, named).record.therapist_id)

    callers = [threading.Thread(target=create) for _ in range(16)]
    for caller in callers:
        caller.start()
    join(*callers)
    assert len(made) == 16
    assert len(set(made)) == 1
    assert head(store) == 1


def test_a_store_error_keeps_only_the_sqlstate_and_the_constraint(store: RelationshipStore) -> None:
    store.create(PATIENT, "p", {"display_name": "Canary-Name", "email": "canary@example.org"}, CALL)
    with pytest.raises(UnexpectedDatabaseError) as defect:
        run(store, "UPDATE patient SET status = 9")
    assert defect.value.args == ("23514", "patient_status_check")
    whole: list[BaseException | None] = [defect.value]
    while whole[-1] is not None:
        assert not isinstance(whole[-1], psycopg.Error)
        whole.append(whole[-1].__cause__ or whole[-1].__context__)


def test_the_pool_hands_out_connections_in_request_order(postgres_url: str) -> None:
    database = PostgresDatabase(postgres_url, connections=1)
    order: list[int] = []
    begun, goes_on = threading.Event(), threading.Event()

    def slow(_: Transaction) -> None:
        begun.set()
        assert goes_on.wait(HUNG_SECONDS)

    def write(number: int) -> None:
        database.write(slow if not number else lambda _: order.append(number))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for number, writer in enumerate(writers):
        writer.start()
        assert begun.wait(HUNG_SECONDS)
        eventually(lambda number=number: len(database._writer.pool._waiters) == number)  # type: ignore[misc]
    goes_on.set()
    join(*writers)
    database.close()
    assert order == [1, 2, 3, 4, 5]


class Waiting:
    """A store whose commits wait for a missing standby."""

    def __init__(self, cluster: Cluster, url: str, clock: Clock) -> None:
        self.cluster = cluster
        self.database = PostgresDatabase(url, commit_timeout_seconds=0.3)
        self.store = RelationshipStore(self.database, clock)

    def stand_by(self, names: str) -> None:
        with self.cluster.connect() as admin:
            admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
            admin.execute("SELECT pg_reload_conf()")
        await_commits(self.cluster, waiting=bool(names))

    def is_available(self) -> bool:
        try:
            self.store.check()
        except errors.StoreUnavailable:
            return False
        return True


@pytest.fixture
def waiting(clock: Clock) -> Iterator[Waiting]:
    from caseload_server.store.backends.postgres.migrate import migrate

    with Cluster(SAFE) as cluster:
        url = cluster.create_database("caseload")
        migrate(url)
        one = Waiting(cluster, url, clock)
        one.stand_by("missing")
        yield one
        one.database.close()


@pytest.mark.slow
def test_a_commit_that_waits_for_its_standby_is_unknown_and_never_cancelled(waiting: Waiting) -> None:
    store, named = waiting.store, CallContext("a", "/m", "5fe1f6a4-8c40-4ee9-9d0f-1b1c6a4b8c11", b"the same")
    with pytest.raises(errors.OutcomeUnknown):
        store.create(THERAPIST, "t", {"display_name": "Ada"}, named)
    with pytest.raises(errors.StoreUnavailable):  # every other commit would wait too
        store.create(THERAPIST, "u", {"display_name": "Ada"}, CALL)
    with pytest.raises(errors.TherapistNotFound):  # no reader sees data that could still be lost
        store.get(THERAPIST, "t")
    eventually(lambda: not waiting.is_available())  # not at once: a commit in progress does not count as waiting
    waiting.database._writer.commit_timeout_seconds = NEVER_SECONDS
    waiting.stand_by("")
    eventually(waiting.is_available)
    assert store.create(THERAPIST, "t", {"display_name": "Ada"}, named).revision == store.keys.revision(1)
    assert store.get(THERAPIST, "t").display_name == "Ada"


@pytest.mark.slow
def test_writes_behind_a_commit_that_waits_are_rejected_and_only_those_in_it_are_unknown(waiting: Waiting) -> None:
    failures: dict[str, type[Exception]] = {}

    def create(name: str) -> None:
        try:
            waiting.store.create(THERAPIST, name, {"display_name": "Ada"}, CALL)
        except errors.DomainError as failure:
            failures[name] = type(failure)

    callers = [threading.Thread(target=create, args=(f"t{number:02}",)) for number in range(24)]
    for caller in callers:
        caller.start()
    join(*callers)
    assert len(failures) == 24
    assert set(failures.values()) <= {errors.OutcomeUnknown, errors.StoreUnavailable}
    waiting.stand_by("")
    eventually(waiting.is_available)
    written = {name for (name,) in run(waiting.store, "SELECT therapist_id FROM therapist")}
    assert written == {name for name, failure in failures.items() if failure is errors.OutcomeUnknown}
    assert head(waiting.store) == len(written)


@pytest.mark.slow
@pytest.mark.parametrize("shown", ["notice", "error"])
def test_a_commit_whose_standby_wait_is_cancelled_is_not_acknowledged(waiting: Waiting, shown: str) -> None:
    waiting.database._writer.commit_timeout_seconds = NEVER_SECONDS
    with waiting.cluster.connect() as admin:  # only a warning shows that the wait was cancelled
        admin.execute(f"SET synchronous_commit = off; ALTER ROLE postgres SET client_min_messages = {shown}".encode())

    def cancel() -> None:
        with waiting.cluster.connect() as admin:
            found = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            eventually(lambda: admin.execute(found.encode()).fetchall())

    someone = threading.Thread(target=cancel)
    someone.start()
    with pytest.raises(errors.OutcomeUnknown):
        waiting.store.create(THERAPIST, "t", {"display_name": "Ada"}, CALL)
    join(someone)


def test_a_read_that_takes_too_long_is_rejected_with_that_cause(postgres_url: str) -> None:
    database = PostgresDatabase(f"{postgres_url}?options=-c%20statement_timeout%3D50ms")
    with pytest.raises(errors.StoreBusy) as caught:
        database.read("SELECT 1 FROM pg_sleep(100)")
    database.close()
    assert caught.value.cause == errors.StoreBusy.STATEMENT_TIMEOUT
