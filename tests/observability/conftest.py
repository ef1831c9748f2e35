"""What the tests of the access log share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from caseload_server.rpc.server import CaseloadServer

from tests.observability.log_lines import Defective
from tests.security.server_fixture import LogReader, logging
from tests.support.api_driver import ApiDriver


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[CaseloadServer, ApiDriver, LogReader]]:
    monkeypatch.setattr("caseload_server.rpc.server.TherapistServicer", Defective)
    with logging(tmp_path) as found:
        yield found
