"""The pytest plugin: the fixtures `caseload_server` and `caseload_store`. pytest loads it by itself."""

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
    "install caseload-server, here or into another environment, and name that one with --caseload-server=PATH"
)


def pytest_addoption(parser: "pytest.Parser") -> None:
    """Adds the option of the plugin."""
    parser.addoption(
        "--caseload-server",
        metavar="PATH",
        help="environment that has caseload-server[testing], or a command in it; without it, that of pytest, or PATH",
    )


@pytest.fixture(scope="session")
def caseload_server(
    pytestconfig: "pytest.Config", tmp_path_factory: "pytest.TempPathFactory"
) -> "Generator[CaseloadForTests]":
    """A real server, for the whole session. Use `caseload_store` for an empty store."""
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
        command = path / "bin" / _COMMAND if path.is_dir() else path.with_name(_COMMAND)
    else:
        command = Path(sys.executable).with_name(_COMMAND)
        command = command if command.exists() else Path(shutil.which(_COMMAND) or command)
    if not command.exists():
        pytest.fail(f"{command} does not exist: {_HOW_TO_INSTALL}", pytrace=False)
    return command
