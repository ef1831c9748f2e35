"""The access log and the event log on a full disk."""

import json
import os
import resource
import sys
from pathlib import Path
from shlex import quote
from typing import Final

import pytest
from caseload_server.observability import log_file
from caseload_server.observability.log_file import LogFile

from tests.observability.metrics_client import numbers
from tests.support.api_driver import ApiDriver, refused
from tests.support.disks import limit_files
from tests.support.servers import ServerProcess, free_address
from tests.support.waiting import eventually

START_BYTES: Final = 20_000_000
"""Where the log of a test begins: no other file of the server becomes this large."""


def begin(path: Path) -> None:
    """Makes a log of START_BYTES, which ends with a line."""
    path.touch(mode=0o600)
    os.truncate(path, START_BYTES - 1)
    with path.open("a") as file:
        file.write("\n")


@pytest.mark.slow
def test_a_full_disk_tears_one_line_and_no_other(tmp_path: Path) -> None:
    """The kernel takes the beginning of a line, as a full disk does, and refuses the rest."""
    path = tmp_path / "access.log"
    begin(path)
    database = f"sqlite:///{tmp_path}/caseload.db"
    with (
        ServerProcess(database, "--access-log-required", access_log=str(path)) as server,
        ApiDriver(server.address) as api,
    ):
        api.therapists("t1")
        limit_files(server, path.stat().st_size + 40)
        for _ in range(2):
            assert refused(api.send, "GetTherapist", therapist_id="t1").reason == "ACCESS_LOG_UNAVAILABLE"
        limit_files(server, resource.RLIM_INFINITY)
        assert api.send("GetTherapist", therapist_id="t1").therapist.therapist_id == "t1"
        server.stop()
    first, torn, lost, last, empty = path.read_bytes()[START_BYTES:].decode().split("\n")
    assert [json.loads(line)["event"] for line in (first, lost, last)] == ["call", "lines_lost", "call"]
    assert (json.loads(lost)["count"], torn[:15], empty) == (2, '{"event":"call"', "")


def test_a_line_that_another_process_tore_spoils_no_line_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier process, or another worker that has not yet ended its line."""
    monkeypatch.setattr(log_file, "_CHECK_INTERVAL_SECONDS", 0.0)
    path = tmp_path / "access.log"
    path.write_text("torn")
    file = LogFile(path)
    file.write("first\n")
    file.write("second\n")
    with path.open("a") as other:
        other.write("torn")
    file.write("third\n")
    file.close()
    assert path.read_text() == "torn\nfirst\nsecond\ntorn\nthird\n"


@pytest.mark.slow
def test_a_full_disk_under_standard_error_loses_counted_lines_and_recovers_without_a_call(tmp_path: Path) -> None:
    path, metrics = tmp_path / "log", free_address()
    begin(path)
    command = ("sh", "-c", f'exec "$@" 2>>{quote(str(path))}', "sh", sys.executable, "-m", "caseload_server")
    database = f"sqlite:///{tmp_path}/caseload.db"
    with (
        ServerProcess(database, "--metrics-address", metrics, command=command, access_log=None) as server,
        ApiDriver(server.address) as api,
    ):
        limit_files(server, path.stat().st_size + 40)
        api.therapists("t1", "t2")
        assert numbers(metrics)("access_log_lost_lines_total") == 2
        assert numbers(metrics)("log_lost_events_total") == 1  # that the access log cannot be written
        limit_files(server, resource.RLIM_INFINITY)
        names = ('"lines_lost"', '"access log written again"', '"log written again"')
        eventually(lambda: all(name in path.read_text() for name in names), lambda: path.read_text()[START_BYTES:])
        server.stop()
    torn = [line for line in path.read_text()[START_BYTES:].splitlines() if not line.endswith("}")]
    assert [line[:15] for line in torn] == ['{"event":"call"']
    lines = [json.loads(line) for line in path.read_text()[START_BYTES:].splitlines() if line not in torn]
    assert [line["count"] for line in lines if line["event"] == "lines_lost"] == [2]
    assert [line["lost_events"] for line in lines if line["event"] == "log written again"] == [1]
