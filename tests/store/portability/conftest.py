import shutil
from pathlib import Path

import pytest
from caseload_server.config import Config
from caseload_server.store.backends.factory import open_store

from tests.store.conftest import START_US, Clock
from tests.store.portability.copies import fill


@pytest.fixture(scope="session")
def filled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one of everything, which no test may change."""
    file = tmp_path_factory.mktemp("filled") / "caseload.db"
    store = open_store(Config(database=f"sqlite:///{file}"), Clock(START_US))
    fill(store)
    store.close()
    return file


@pytest.fixture
def source(tmp_path: Path, filled_file: Path) -> str:
    """The URL of a database with one of everything."""
    file = tmp_path / "source.db"
    shutil.copy(filled_file, file)
    return f"sqlite:///{file}"
