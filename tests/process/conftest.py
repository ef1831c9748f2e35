import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from caseload_server.config import Config
from caseload_server.store import PATIENT, THERAPIST, RelationshipStore
from caseload_server.store.backends.factory import open_store

from tests.process.command_runner import url
from tests.store.store_calls import make


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test starts by itself write the record of who ran them nowhere."""
    monkeypatch.setenv("CASELOAD_ACCESS_LOG", os.devnull)


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The URL of a database with a therapist and a patient."""
    address = url(tmp_path / "source.db")
    store = open_store(Config(database=address), lambda: 1)
    make(store, THERAPIST, "t")
    make(store, PATIENT, "p")
    store.close()
    return address


@pytest.fixture
def open_stores() -> Iterator[list[RelationshipStore]]:
    """Stores that are closed after the test."""
    stores: list[RelationshipStore] = []
    yield stores
    for store in stores:
        store.close()
