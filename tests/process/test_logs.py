"""The log of a server: its startup event, its formats, and the list of events."""

import dataclasses
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from caseload_server.config import Config
from caseload_server.observability import logs

from tests.docs.doc_blocks import OPERATIONS, ROOT
from tests.process.command_runner import SECRET, url
from tests.security.server_fixture import KeysFile
from tests.support.api_driver import ApiDriver, full_name
from tests.support.servers import ServerProcess


def events(log: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.splitlines()]


def test_a_start_logs_one_event_with_every_effective_setting(tmp_path: Path) -> None:
    environment = {"CASELOAD_MAX_WATCHES": "7"}
    arguments = ("--grace-seconds", "3", "--metrics-address", "127.0.0.1:0")
    with ServerProcess(url(tmp_path / "caseload.db"), *arguments, environment=environment) as server:
        _, log = server.stop()
    [started] = [event for event in events(log) if event["event"] == "started"]
    assert started["address"] == server.address
    assert re.fullmatch(r"127\.0\.0\.1:[1-9][0-9]*", str(started["metrics_address"]))
    configuration = started["configuration"]
    assert isinstance(configuration, dict)
    assert configuration.keys() == {field.name for field in dataclasses.fields(Config)}
    assert configuration["database"] == url(tmp_path / "caseload.db")
    assert (configuration["max_watches"], configuration["grace_seconds"], configuration["threads"]) == (
        7,
        3,
        Config.threads,
    )


@pytest.mark.parametrize(
    "given",
    [
        f"postgresql://ann:{SECRET}@db.example:5433,other.example/caseload?sslmode=require",
        f"postgresql://ann@db.example/caseload?sslpassword={SECRET}&password={SECRET}",
    ],
)
def test_the_password_of_the_database_is_not_logged(given: str) -> None:
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    logged = logs.startup_fields(Config(database=given))["configuration"]["database"]
    assert SECRET not in str(logged)
    assert (logged["user"], logged["dbname"]) == ("ann", "caseload")


def test_only_the_names_of_secret_files_are_logged(tmp_path: Path) -> None:
    keys = KeysFile(tmp_path / "keys")
    token = keys.add("ann")
    with ServerProcess(url(tmp_path / "caseload.db"), "--keys-file", str(keys.path)) as server:
        _, log = server.stop()
    [started] = [event for event in events(log) if event["event"] == "started"]
    assert '"keys_file": "keys"' in log
    assert str(keys.path) not in log
    assert token not in log
    assert started["level"] == "info"


@pytest.mark.parametrize(("level", "lines"), [("info", 3), ("warning", 0), ("error", 0)])
def test_events_below_the_level_are_not_logged(tmp_path: Path, level: str, lines: int) -> None:
    with ServerProcess(url(tmp_path / "caseload.db"), "--log-level", level) as server:
        _, log = server.stop()
    assert len(log.splitlines()) == lines


def test_the_access_log_is_complete_at_every_level(tmp_path: Path) -> None:
    with ServerProcess(url(tmp_path / "caseload.db"), "--log-level", "error", access_log=None) as server:
        with ApiDriver(server.address) as api:
            api.therapists("t1")
        _, log = server.stop()
    assert [event["event"] for event in events(log)] == ["call"]


@pytest.fixture(params=[False, True], ids=["colours", "NO_COLOR"])
def shown(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[bool, str]]:
    """Whether colours are disabled, and the terminal output of a start, a call and a stop."""
    ours, terminal = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"NO_COLOR": "1"} if request.param else {}
    command = [sys.executable, "-m", "caseload_server", "serve", "--address", "127.0.0.1:0", "--drain-seconds", "0"]
    command += ["--database", url(tmp_path / "caseload.db")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=terminal, text=True) as process:
        os.close(terminal)
        assert process.stdout
        with ApiDriver(process.stdout.readline().rpartition(" ")[2].strip()) as api:
            api.therapists("t1")
        process.terminate()
        text = read_to_the_end(ours)
    yield request.param, text
    os.close(ours)


def read_to_the_end(terminal: int) -> str:
    data = b""
    try:
        while some := os.read(terminal, 10_000):
            data += some
    except OSError:  # a terminal's error after its other side is closed
        pass
    return data.decode()


def test_a_terminal_shows_text_instead_of_json(shown: tuple[bool, str]) -> None:
    without_colours, text = shown
    assert ("\x1b[" in text) != without_colours
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert [line for line in lines if line.startswith("{")] == []
    started, call, stopping, stopped = lines
    assert re.match(r"\d\d:\d\d:\d\d \[info *\] started ", started)
    assert f"method={full_name('CreateTherapist')} code=OK therapist_ids=['t1'] ms=" in call
    assert ("stopping" in stopping, "stopped" in stopped) == (True, True)


@pytest.mark.checkout
def test_the_documentation_lists_exactly_the_logged_events() -> None:
    """Event names are constants, so that operators can search for them."""
    code = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    logged = re.findall(r'\b_?log\.(info|warning|error)\(\s*"([^"]+)"', code)
    assert len(logged) == len(re.findall(r"\b_?log\.(?:debug|info|warning|error|exception|critical|log|msg)\(", code))
    logged += [("warning", name) for name in re.findall(r'_rendered\("([^"]+)"', code)]  # which no logger logs
    page = (OPERATIONS / "logs.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \| (info|warning|error) \|", page, re.MULTILINE)
    assert sorted(set(logged)) == sorted(
        (level, name) for names, level in rows for name in re.findall("`([^`]+)`", names)
    )
