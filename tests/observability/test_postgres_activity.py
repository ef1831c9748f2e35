"""The gauges of what PostgreSQL is doing: transactions, locks, commits and standbys."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from caseload_server.store.backends.postgres import activity

from tests.conftest import serving
from tests.observability.metrics_client import Numbers, numbers, wait_for_metrics
from tests.store.standby import await_commits
from tests.support.api_driver import ApiDriver
from tests.support.postgres.cluster import SAFE, Cluster, Server
from tests.support.postgres.fixtures import migrate

pytestmark = pytest.mark.slow

METRICS = {"metrics_address": "127.0.0.1:0"}


@pytest.fixture(autouse=True)
def _samples_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "SAMPLE_INTERVAL_SECONDS", 0.05)


@contextmanager
def lock_wait(url: str) -> Iterator[None]:
    """A transaction that holds a lock, and another one that waits for it."""
    with psycopg.connect(url) as holding, psycopg.connect(url) as waiting:
        holding.execute("LOCK TABLE therapist")
        waiting.pgconn.send_query(b"BEGIN; LOCK TABLE therapist")
        yield
        holding.rollback()
        while waiting.pgconn.get_result():
            pass


def is_quiet(seen: Numbers) -> bool:
    return seen("postgres_oldest_transaction_seconds") == seen("postgres_lock_waits") == 0


def test_an_old_transaction_and_a_wait_for_a_lock_are_shown(postgres_url: str) -> None:
    with serving(postgres_url, **METRICS) as server:
        with lock_wait(postgres_url):
            wait_for_metrics(server.metrics_address, lambda seen: seen("postgres_lock_waits") == 1)
            wait_for_metrics(server.metrics_address, lambda seen: seen("postgres_oldest_transaction_seconds") > 1)
        wait_for_metrics(server.metrics_address, is_quiet)


def test_a_role_without_pg_monitor_has_the_page_and_sees_no_lag(postgres: Server, postgres_url: str) -> None:
    """The server's role may be any that can read and write the tables."""
    with postgres.role(postgres_url) as url, serving(url, **METRICS) as server, lock_wait(postgres_url):
        seen = wait_for_metrics(server.metrics_address, lambda seen: seen("postgres_lock_waits") == 1)
        assert math.isnan(seen("postgres_replication_lag_bytes"))
        assert seen("ready") == 1


def test_standbys_and_commits_that_wait_for_one_are_shown_and_an_outage_is_not_a_number() -> None:
    with ExitStack() as opened:
        primary = opened.enter_context(Cluster(SAFE))
        standby = opened.enter_context(Cluster(SAFE, primary))
        url = primary.create_database("caseload")
        migrate(url)
        server = opened.enter_context(serving(url, **METRICS))
        api = opened.enter_context(ApiDriver(server.address))
        address = server.metrics_address
        wait_for_metrics(
            address, lambda seen: (seen("postgres_standbys"), seen("postgres_replication_lag_bytes")) == (1, 0)
        )
        with standby.connect() as connection:
            connection.execute("SELECT pg_wal_replay_pause()")
        api.therapists("t1")
        wait_for_metrics(address, lambda seen: seen("postgres_replication_lag_bytes") > 0)
        primary.configure("synchronous_standby_names", "missing")
        await_commits(primary, waiting=True)
        with primary.connect("caseload") as waiting:
            waiting.pgconn.send_query(b"SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'probe', '')")
            wait_for_metrics(address, lambda seen: seen("postgres_commits_waiting") == 1)
            primary.configure("synchronous_standby_names", "")
            while waiting.pgconn.get_result():
                pass
            wait_for_metrics(address, lambda seen: seen("postgres_commits_waiting") == 0)
        primary.stop("immediate")
        wait_for_metrics(address, lambda seen: math.isnan(seen("postgres_lock_waits")))
        primary.start()
        wait_for_metrics(address, lambda seen: seen("postgres_lock_waits") == 0)
        assert numbers(address)("workers") == 1
