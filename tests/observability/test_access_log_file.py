"""The access log file: complete lines, rotation by logrotate, and a full disk."""

import json
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from caseload_server.observability import log_file
from caseload_server.observability.log_file import LogFile
from structlog.testing import capture_logs

from tests.process.command_runner import refusal
from tests.security.server_fixture import LogReader, logging, serving
from tests.support.api_driver import ApiDriver, refused
from tests.support.servers import ServerProcess
from tests.support.waiting import join


@pytest.mark.slow
def test_lines_of_many_threads_do_not_interleave(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    files = [LogFile(path), LogFile(path)]  # two handles, as two processes have

    def write(number: int) -> None:
        for _ in range(50):
            files[number % 2].write(json.dumps({"number": number, "filling": f"{number:02}" * 20_000}) + "\n")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    join(*threads)
    seen: Counter[int] = Counter()
    with path.open() as file:
        for line in file:
            found = json.loads(line)
            assert found["filling"] == f"{found['number']:02}" * 20_000
            seen[found["number"]] += 1
    assert seen == dict.fromkeys(range(64), 50)
    for opened in files:
        opened.close()


def test_a_line_that_another_process_is_writing_does_not_count_as_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "access.log"
    with path.open("ab", buffering=0) as other, closing(LogFile(path)) as file:
        other.write(b'{"number": ')
        monkeypatch.setattr("time.sleep", lambda _: other.write(b"1}\n"))
        file.write("{}\n")
    assert path.read_text() == '{"number": 1}\n{}\n'


def test_a_rotated_file_is_replaced_by_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """logrotate renames the file and sends no signal."""
    monkeypatch.setattr(log_file, "_CHECK_INTERVAL_SECONDS", 0.0)
    with logging(tmp_path) as (_, api, reader):
        api.therapists("t1")
        reader.path.rename(tmp_path / "access.log.1")
        api.therapists("t2")
        assert [line["therapist_ids"] for line in reader.lines()] == [["t2"]]
        assert reader.path.stat().st_mode & 0o777 == 0o600
    assert [line["therapist_ids"] for line in LogReader(tmp_path / "access.log.1").lines()] == [["t1"]]


@pytest.mark.slow
def test_the_file_is_private_to_its_owner_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    for number in range(2):
        with (
            ServerProcess(f"sqlite:///{tmp_path}/caseload.db", "--access-log", str(path)) as server,
            ApiDriver(server.address) as one,
        ):
            one.therapists(f"t{number}")
            _, log = server.stop()
        assert "CreateTherapist" not in log
    assert path.stat().st_mode & 0o777 == 0o600
    assert [line["therapist_ids"] for line in LogReader(path).lines()] == [["t0"], ["t1"]]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o602, 0o622, 0o666])
def test_a_log_file_that_other_users_can_write_is_rejected(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "access.log"
    path.touch()
    path.chmod(mode)
    commands = [("serve", "--address", "127.0.0.1:0"), ("migrate",)]
    for command in commands:
        line = refusal(tmp_path, *command, "--database", "sqlite:///a.db", "--access-log", "access.log")
        assert line == "--access-log: can be written by other users: run chmod o-w on it"
    assert path.read_text() == ""


@pytest.mark.parametrize(("mode", "events"), [(0o640, []), (0o644, ["access log open to others"])], ids=str)
def test_a_log_file_that_other_users_can_read_causes_a_warning(tmp_path: Path, mode: int, events: list[str]) -> None:
    path = tmp_path / "access.log"
    path.touch()
    path.chmod(mode)
    with capture_logs() as logs, logging(tmp_path) as (_, api, reader):
        api.therapists("t1")
        assert len(reader.lines()) == 1
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == events


@pytest.mark.slow
def test_a_line_is_written_before_the_response_is_sent(tmp_path: Path) -> None:
    """So a crash loses no line of a call that a caller saw complete."""
    path = tmp_path / "access.log"
    with (
        ServerProcess(f"sqlite:///{tmp_path}/caseload.db", "--access-log", str(path)) as server,
        ApiDriver(server.address) as api,
    ):
        for number in range(20):
            api.therapists(f"t{number}")
            assert len(LogReader(path).lines()) == number + 1
        server.kill()
    assert len(LogReader(path).lines()) == 20


@pytest.mark.slow
def test_a_crash_loses_no_line_of_an_open_watch(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with (
        ServerProcess(f"sqlite:///{tmp_path}/caseload.db", "--access-log", str(path)) as server,
        ApiDriver(server.address) as api,
    ):
        watch = api.watch(therapist_id="t1")
        next(watch)
        server.kill()
    assert [(line["event"], line["therapist_ids"]) for line in LogReader(path).lines()] == [("stream_opened", ["t1"])]


def test_a_write_failure_of_the_access_log_is_logged_once_and_calls_continue(tmp_path: Path) -> None:
    full_disk = Path("/dev/full")
    with serving(tmp_path, access_log=full_disk) as server, ApiDriver(server.address) as api, capture_logs() as logs:
        api.therapists("t1", "t2", "t3")
    assert [(line["event"], line["type"]) for line in logs] == [("access log write failed", "OSError")]


@pytest.mark.slow
def test_calls_continue_when_standard_error_is_not_read(tmp_path: Path) -> None:
    with (
        ServerProcess(f"sqlite:///{tmp_path}/caseload.db", access_log=None) as server,
        ApiDriver(server.address) as api,
    ):
        assert server.process.stderr is not None
        server.process.stderr.close()
        server.process.stderr = None
        api.therapists("t1", "t2")
        assert refused(api.send, "GetTherapist", therapist_id="t3").reason == "THERAPIST_NOT_FOUND"


@pytest.mark.slow
def test_without_a_file_lines_are_written_to_standard_error(tmp_path: Path) -> None:
    with (
        ServerProcess(f"sqlite:///{tmp_path}/caseload.db", access_log=None) as server,
        ApiDriver(server.address) as api,
    ):
        api.therapists("t1")
        _, log = server.stop()
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events == ["started", "call", "stopping", "stopped"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["missing/access.log", "."])
def test_an_unusable_log_path_is_rejected(tmp_path: Path, where: str) -> None:
    serve = ("serve", "--address", "127.0.0.1:0", "--database", "sqlite:///a.db")
    assert refusal(tmp_path, *serve, "--access-log", where).startswith("--access-log: ")
