from collections.abc import Iterator
from pathlib import Path

import pytest
from caseload_server.store.backends.sqlite.database import SqliteDatabase
from caseload_server.store.backends.sqlite.migrate import migrate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A migrated file."""
    file = tmp_path / "caseload.db"
    migrate(file)
    return file


@pytest.fixture
def database(path: Path) -> Iterator[SqliteDatabase]:
    """The database in `path`."""
    opened = SqliteDatabase(path)
    yield opened
    opened.close()
