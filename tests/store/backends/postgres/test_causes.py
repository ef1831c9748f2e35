"""STORE_BUSY names its four causes, and metrics count every failure by its cause."""

from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest
from caseload_server.domain import errors
from caseload_server.store.backends.postgres import connection, connection_pool, driver_errors
from caseload_server.store.backends.postgres.database import PostgresDatabase
from caseload_server.store.backends.postgres.driver_errors import UnexpectedDatabaseError
from caseload_server.store.backends.protocol import StoreMetrics, Transaction
from caseload_server.store.backends.timed_database import TimedDatabase

from tests.store.backends.postgres.proxy import Proxy
from tests.support.write_lock import holding_the_lock

RAISE = """
CREATE FUNCTION failing(state TEXT) RETURNS BIGINT LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION USING ERRCODE = state; END $$"""


class Counted:
    """A database whose failures are counted."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.causes: list[str] = []
        self.driver = PostgresDatabase(url, connections=1)
        self.database = TimedDatabase(
            self.driver, StoreMetrics(lambda _: None, lambda _: None, lambda _, __: None, self.causes.append)
        )


@pytest.fixture
def counted(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    monkeypatch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(connection_pool, "ACQUIRE_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setitem(connection.WRITES.defaults, "lock_timeout", "50ms")
    with psycopg.connect(postgres_url) as admin:
        admin.execute(RAISE)
    made = Counted(postgres_url)
    with closing(made.driver):
        yield made


def raising(state: str) -> Callable[[Transaction], object]:
    return lambda transaction: transaction.run("SELECT failing(:state)", {"state": state})


def wait_for_a_lock(counted: Counted) -> None:
    with holding_the_lock(counted.url):
        counted.database.write(lambda transaction: transaction.run("UPDATE store SET head_revision = 1"))


def limit_statements(counted: Counted) -> None:
    """Sets a short timeout in the one session for reads."""
    counted.database.read("SELECT set_config('statement_timeout', '50ms', false)")


def read_for_long(counted: Counted) -> None:
    limit_statements(counted)
    counted.database.read("SELECT 1 FROM pg_sleep(100)")


def read_for_long_in_a_snapshot(counted: Counted) -> None:
    limit_statements(counted)
    with counted.database.snapshot() as transaction:
        transaction.run("SELECT 1 FROM pg_sleep(100)")


def wait_for_a_connection(counted: Counted) -> None:
    with counted.database.snapshot():
        counted.database.read("SELECT 1")


def collide(counted: Counted) -> None:
    counted.database.write(raising("40001"))


BUSY: dict[str, tuple[str, Callable[[Counted], None]]] = {
    "lock": ("lock_wait", wait_for_a_lock),
    "read": ("statement_timeout", read_for_long),
    "snapshot": ("statement_timeout", read_for_long_in_a_snapshot),
    "pool": ("pool_wait", wait_for_a_connection),
    "conflict": ("collision", collide),
}


@pytest.mark.parametrize("way", BUSY)
def test_a_busy_store_names_its_cause(counted: Counted, way: str) -> None:
    cause, provoke = BUSY[way]
    with pytest.raises(errors.StoreBusy) as refusal:
        provoke(counted)
    assert refusal.value.metadata == {"cause": cause}
    assert refusal.value.message == errors.StoreBusy.texts[cause]
    assert set(counted.causes) == {cause}


def test_the_texts_of_the_causes_differ() -> None:
    assert len(set(errors.StoreBusy.texts.values())) == 4


def test_other_failures_are_counted_by_cause_too(counted: Counted) -> None:
    with pytest.raises(errors.StoreFull):
        counted.database.write(raising("53100"))
    with pytest.raises(UnexpectedDatabaseError) as defect:
        counted.database.write(raising("22012"))
    assert defect.value.sqlstate == "22012"
    with pytest.raises(errors.StoreUnavailable) as refusal:
        counted.database.write(raising("57P03"))
    assert refusal.value.sqlstate == "57P03"
    assert counted.causes == ["full", "defect", "unavailable"]


def test_a_call_that_the_rules_refuse_is_no_failure(counted: Counted) -> None:
    def refuse(_: Transaction) -> None:
        raise errors.TherapistNotFound

    with pytest.raises(errors.TherapistNotFound):
        counted.database.write(refuse)
    assert counted.causes == []


def test_an_unreachable_database_is_described_for_the_log_only(counted: Counted) -> None:
    with Proxy(counted.url) as proxy, closing(PostgresDatabase(proxy.url)) as database:
        proxy.refuse()
        with pytest.raises(errors.StoreUnavailable) as refusal:
            database.read("SELECT 1")
    assert "Connection refused" in refusal.value.detail
    assert refusal.value.message == errors.StoreUnavailable.text
    assert refusal.value.metadata == {}
