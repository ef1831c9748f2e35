import os

import pytest

HUNG_TEST_SECONDS = 600
"""Seconds after which a test counts as hung: these tests start many processes, slow on a busy machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/process/" in item.path.as_posix() and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(HUNG_TEST_SECONDS))


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test starts by itself write the record of who ran them nowhere."""
    monkeypatch.setenv("CASELOAD_ACCESS_LOG", os.devnull)
