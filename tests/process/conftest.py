import pytest

HUNG_TEST_SECONDS = 600
"""These tests start many processes, each of which has its turn on a busy machine: only one that hangs takes so long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/process/" in item.path.as_posix() and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(HUNG_TEST_SECONDS))
