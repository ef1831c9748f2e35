import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from service.config import Config
from service.server import CaseloadServer, build_server
from tests.running import Client

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _failed_when_skipped_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _failed_when_skipped_in_ci((yield))


def _failed_when_skipped_in_ci(report: Report) -> Report:
    """CI has every tool the tests need, so a skip there is a check that has silently stopped."""
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CaseloadServer]:
    """A server of the test's own, in this process, over a real socket."""
    config = Config(address="127.0.0.1:0", database=f"sqlite:///{tmp_path}/caseload.db", drain_seconds=0, threads=8)
    started = build_server(config)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def client(server: CaseloadServer) -> Iterator[Client]:
    """A caller of that server."""
    caller = Client(server.address)
    yield caller
    caller.close()
