"""Stores on PostgreSQL, and what stands between them and the server."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from caseload_server.store import RelationshipStore
from caseload_server.store.backends.postgres import driver_errors
from caseload_server.store.backends.postgres.database import PostgresDatabase

from tests.store.backends.postgres.proxy import Proxy
from tests.store.conftest import Clock
from tests.support.waiting import HUNG_SECONDS


@pytest.fixture
def database(postgres_url: str) -> Iterator[PostgresDatabase]:
    opened = PostgresDatabase(postgres_url)
    yield opened
    opened.close()


@pytest.fixture
def store(database: PostgresDatabase, clock: Clock) -> RelationshipStore:
    return RelationshipStore(database, clock)


@pytest.fixture
def admin(postgres_url: str) -> Iterator["psycopg.Connection[Any]"]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    with Proxy(postgres_url) as between:
        yield between


@pytest.fixture
def cut_off(proxy: Proxy, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[RelationshipStore]:
    """A store whose connections go through the proxy."""
    monkeypatch.setattr(driver_errors, "_RETRY_TIMEOUT_SECONDS", HUNG_SECONDS)
    database = PostgresDatabase(proxy.url)
    yield RelationshipStore(database, clock)
    database.close()


@pytest.fixture
def other(postgres_url: str, clock: Clock) -> Iterator[RelationshipStore]:
    """A second instance on the same database."""
    opened = PostgresDatabase(postgres_url)
    yield RelationshipStore(opened, clock)
    opened.close()
