"""The pools of connections to PostgreSQL: they close what is unused, and give way to each other."""

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial

import psycopg
import pytest
from caseload_server.config import Config
from caseload_server.domain import errors
from caseload_server.store import PATIENT
from caseload_server.store.backends.factory import open_store
from caseload_server.store.backends.postgres import database as database_module
from caseload_server.store.backends.postgres import driver_errors
from caseload_server.store.backends.postgres.connection import connect
from caseload_server.store.backends.postgres.connection_pool import ConnectionPool
from caseload_server.store.backends.postgres.database import PostgresDatabase

from tests.store.store_calls import make
from tests.support.postgres.cluster import Server
from tests.support.waiting import HUNG_SECONDS, eventually

LIMIT = 6


@pytest.fixture
def pool(postgres_url: str) -> Iterator[ConnectionPool]:
    made = ConnectionPool(partial(connect, postgres_url), 3)
    yield made
    made.close()


def used_at_once(pool: ConnectionPool, count: int) -> "list[psycopg.Connection[tuple[object, ...]]]":
    connections = [pool.acquire() for _ in range(count)]
    for connection in connections:
        pool.release(connection)
    return connections


def test_connections_that_are_idle_for_long_are_closed(pool: ConnectionPool) -> None:
    connections = used_at_once(pool, 3)
    pool.close_unused(HUNG_SECONDS)
    assert [one.closed for one in connections] == [False] * 3
    pool.close_unused(0)
    assert [one.closed for one in connections] == [True] * 3
    assert not used_at_once(pool, 1)[0].closed


def test_a_connection_in_use_is_never_closed_as_idle(pool: ConnectionPool) -> None:
    first, second = pool.acquire(), pool.acquire()
    pool.release(first)
    pool.close_unused(0)
    pool.give_way(urgent=True)
    assert (first.closed, second.closed) == (True, False)
    pool.release(second)


def test_a_pool_without_idle_connections_gives_way_with_the_next(pool: ConnectionPool) -> None:
    first, second = pool.acquire(), pool.acquire()
    pool.give_way(urgent=True)
    pool.release(first)
    pool.release(second)
    assert (first.closed, second.closed) == (True, False)


def test_the_check_closes_idle_connections(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConnectionPool.close_unused, "__defaults__", (0.0,))
    with closing(PostgresDatabase(postgres_url)) as database, psycopg.connect(postgres_url) as admin:
        database.read("SELECT 1")
        database.write(lambda transaction: transaction.run("SELECT 1"))
        assert sessions(admin) == 2
        database.check()
        eventually(lambda: sessions(admin) == 1)  # that of the check


def test_closed_connections_are_freed_with_what_was_prepared_on_them(postgres_url: str) -> None:
    with closing(PostgresDatabase(postgres_url)) as database:
        for _ in range(3):
            database.read("SELECT 1")
            with database.snapshot() as snapshot:
                snapshot.run("SELECT 1")
            database.write(lambda transaction: transaction.run("SELECT 1"))
            connections = [weakref.ref(one) for pool in database._pools for one, _ in pool._idle]
            assert len(connections) == 2
            for pool in database._pools:
                pool.close_unused(0)
            gc.collect()
            assert [connection() for connection in connections] == [None, None]
        assert not list(database._writer._pipelines.values())


def sessions(admin: "psycopg.Connection[tuple[int]]") -> int:
    admin.rollback()  # pg_stat_activity shows one moment for a whole transaction
    [(count,)] = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'caseload'"
    ).fetchall()
    return count


@pytest.fixture
def limited_url(postgres: Server, postgres_url: str) -> Iterator[str]:
    """The URL of an empty store, for a role with few connections."""
    with postgres.role(postgres_url, f"CONNECTION LIMIT {LIMIT}") as url:
        yield url


def test_reads_leave_connections_for_writes_and_for_the_check(
    limited_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", HUNG_SECONDS)
    with closing(open_store(Config(database=limited_url), lambda: 1)) as store, ThreadPoolExecutor(16) as threads:
        patient = make(store, PATIENT, "")
        reads = [threads.submit(store.get, PATIENT, patient.patient_id) for _ in range(72)]
        assert {read.result(HUNG_SECONDS) for read in reads} == {patient}
        assert make(store, PATIENT, "").patient_id
        store.check()


def test_reads_and_writes_share_few_connections_under_load(limited_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", HUNG_SECONDS)
    ended = threading.Event()

    def read_on() -> None:
        while not ended.is_set():
            store.get(PATIENT, patient.patient_id)

    with closing(open_store(Config(database=limited_url), lambda: 1)) as store, ThreadPoolExecutor(16) as threads:
        patient = make(store, PATIENT, "")
        readers = [threads.submit(read_on) for _ in range(12)]
        try:
            writes = [threads.submit(make, store, PATIENT, "") for _ in range(8)]
            assert len({write.result(HUNG_SECONDS).patient_id for write in writes}) == 8
            store.check()
        finally:
            ended.set()
        for reader in readers:
            reader.result(HUNG_SECONDS)


def waiting_snapshots(database: PostgresDatabase) -> float:
    [sample] = [sample for _, labels, sample in database.gauges() if labels == {"pool": "snapshot"}]
    return sample()


def test_snapshots_leave_a_quarter_of_the_connections_for_reads_of_one_record(postgres_url: str) -> None:
    def read_snapshot() -> object:
        with database.snapshot() as transaction:
            return transaction.run("SELECT 1")

    with closing(PostgresDatabase(postgres_url, connections=4)) as database, ThreadPoolExecutor(1) as threads:
        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(database.snapshot())
            waiting = threads.submit(read_snapshot)
            eventually(lambda: waiting_snapshots(database) == 1)
            assert database.read("SELECT 1") == [(1,)]
            assert not waiting.done()
        assert waiting.result(HUNG_SECONDS) == [(1,)]
        assert waiting_snapshots(database) == 0


def test_a_snapshot_that_waited_in_vain_names_the_pool_as_the_cause(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "ACQUIRE_TIMEOUT_SECONDS", 0.01)
    with closing(PostgresDatabase(postgres_url, connections=1)) as database:
        with database.snapshot(), pytest.raises(errors.StoreBusy) as refusal, database.snapshot():
            pass
        assert refusal.value.cause == errors.StoreBusy.POOL_WAIT
        with database.snapshot() as transaction:
            assert transaction.run("SELECT 1") == [(1,)]
