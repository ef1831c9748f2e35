"""Fixtures for tests on PostgreSQL; where there is none, tests/support/skips.py skips them."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.postgres.cluster import QUICK, Cluster, Server
from tests.support.postgres.databases import Databases
from tests.support.waiting import HUNG_SECONDS


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The server of CASELOAD_TEST_POSTGRES_URL, or a temporary cluster. Tests share it and must not stop it."""
    if given := os.environ.get("CASELOAD_TEST_POSTGRES_URL"):
        yield Server(given)
        return
    with Cluster(QUICK) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgres_databases(postgres: Server) -> Iterator[Databases]:
    """A database pool, for tests that need several databases or one that outlives a test."""
    with Databases(postgres, migrate) as databases:
        yield databases


@pytest.fixture
def postgres_url(postgres_databases: Databases) -> Iterator[str]:
    """An empty migrated database of the test's own."""
    with postgres_databases.acquire() as url:
        yield url


def migrate(url: str) -> None:
    """Runs `caseload migrate`, as an operator does."""
    command = [sys.executable, "-m", "caseload_server", "migrate"]
    environment = {**os.environ, "CASELOAD_DATABASE": url}
    migrated = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=HUNG_SECONDS, check=False
    )
    assert migrated.returncode == 0, migrated.stderr
