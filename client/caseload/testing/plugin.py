"""The pytest plugin with the fixtures `caseload_server` and `caseload_store`. Its entry point makes pytest load it."""

import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from caseload.testing.server import CaseloadForTests

_COMMAND: Final = "caseload-test-server"
_HOW_TO_INSTALL: Final = (
    "install caseload-server here, or into another environment and pass that with --caseload-server=PATH"
)


def pytest_addoption(parser: "pytest.Parser") -> None:
    """Adds the option --caseload-server."""
    parser.addoption(
        "--caseload-server",
        metavar="PATH",
        help="environment with caseload-server, or a command in it (default: the environment of pytest, or PATH)",
    )


@pytest.fixture(scope="session")
def caseload_server(
    pytestconfig: "pytest.Config", tmp_path_factory: "pytest.TempPathFactory"
) -> "Generator[CaseloadForTests]":
    """The real server, for the whole session, with the data of previous tests. `caseload_store` has an empty store."""
    from caseload.testing.server import CaseloadForTests  # imported here: every run of pytest imports this module

    log = tmp_path_factory.mktemp("caseload") / "server.log"
    with CaseloadForTests(_command(pytestconfig.getoption("--caseload-server")), log) as server:
        yield server


@pytest.fixture
def caseload_store(caseload_server: "CaseloadForTests") -> "CaseloadForTests":
    """The server of the session, with an empty store and no faults."""
    caseload_server.clear()
    return caseload_server


def _command(given: str | None) -> Path:
    if given:
        path = Path(given)
        command = path.with_name(_COMMAND) if path.is_file() else path / "bin" / _COMMAND
    else:
        command = Path(sys.executable).with_name(_COMMAND)
        command = command if command.exists() else Path(shutil.which(_COMMAND) or command)
    if not command.exists():
        pytest.fail(f"{command} does not exist: {_HOW_TO_INSTALL}", pytrace=False)
    return command
