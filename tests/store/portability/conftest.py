from pathlib import Path

import pytest
from caseload_server.config import Config
from caseload_server.store.backends.factory import open_store

from tests.store.conftest import Clock
from tests.store.portability.copies import fill


@pytest.fixture
def source(tmp_path: Path, clock: Clock) -> str:
    """The URL of a database with one of everything."""
    url = f"sqlite:///{tmp_path}/source.db"
    store = open_store(Config(database=url), clock)
    fill(store)
    store.close()
    return url
