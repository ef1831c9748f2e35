"""An access log that cannot be written: its lines are counted, or its calls are refused."""

import json
import os
import pty
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from caseload_server.domain import limits
from caseload_server.domain.errors import AccessLogUnavailable
from caseload_server.observability import log_file
from caseload_server.observability.access_log import AccessLog
from caseload_server.observability.log_file import LogFile
from caseload_server.observability.readiness import READINESS_SERVICES
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.observability.metrics_client import numbers
from tests.security.server_fixture import serving
from tests.support.api_driver import ApiDriver, refused
from tests.support.waiting import HUNG_SECONDS, eventually, join

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
REFUSED: Final = "ACCESS_LOG_UNAVAILABLE"


class Log(NamedTuple):
    """A log that cannot be written, until it is repaired. It then has the returned lines."""

    path: Path
    fail: Callable[[], None]
    repair: Callable[[], object]
    read: Callable[[], list[str]]


def pipe(tmp_path: Path) -> tuple[Path, int]:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path, os.open(path, os.O_RDONLY | os.O_NONBLOCK)


@contextmanager
def without_reader(tmp_path: Path) -> Iterator[Log]:
    """A pipe whose reader has ended. Another reader comes later."""
    path, reader = pipe(tmp_path)
    readers, collected = [reader], bytearray()

    def repair() -> None:
        readers.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))

    def read() -> list[str]:
        return _drain(readers[-1], collected).decode().splitlines()

    yield Log(path, lambda: os.close(readers.pop()), repair, read)
    os.close(readers[-1])


def _drain(reader: int, collected: bytearray) -> bytearray:
    with suppress(BlockingIOError):
        while some := os.read(reader, 65536):
            collected += some
    return collected


@contextmanager
def without_reading(tmp_path: Path) -> Iterator[Log]:
    """A pipe whose reader does not read until later."""
    path, reader = pipe(tmp_path)
    collected = bytearray()

    def fill() -> None:
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while os.write(writer, b"\n" * 4096):
                pass
        os.close(writer)

    def read() -> list[str]:
        return _drain(reader, collected).decode().splitlines()

    yield Log(path, fill, lambda: _drain(reader, collected), read)
    os.close(reader)


@pytest.fixture(params=[without_reader, without_reading])
def log(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    monkeypatch.setattr(log_file, "WRITE_TIMEOUT_SECONDS", 0.2)
    with request.param(tmp_path) as found:
        yield found


def events(log: Log) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read() if line]


@pytest.fixture
def strict_api(tmp_path: Path, log: Log) -> Iterator[ApiDriver]:
    """A client of a server that must log every call, with therapist t1."""
    with (
        serving(tmp_path, access_log=log.path, access_log_required=True) as server,
        ApiDriver(server.address) as api,
    ):
        api.therapists("t1")
        yield api


def health(api: ApiDriver) -> int:
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    asked = health_pb2.HealthCheckRequest(service=READINESS_SERVICES[0])
    return int(stub.Check(asked, timeout=HUNG_SECONDS).status)


def test_calls_continue_and_lost_lines_are_counted(tmp_path: Path, log: Log) -> None:
    with (
        capture_logs() as logged,
        serving(tmp_path, access_log=log.path, metrics_address="127.0.0.1:0") as server,
        ApiDriver(server.address) as api,
    ):
        api.therapists("t1")
        log.fail()
        api.therapists("t2", "t3")
        assert numbers(server.metrics_address)("access_log_lost_lines_total") == 2
        log.repair()
        api.therapists("t4")
        eventually(lambda: any(line["event"] == "lines_lost" for line in events(log)), log.read)
        assert numbers(server.metrics_address)("access_log_lost_lines_total") == 2
    said = events(log)
    assert [line["count"] for line in said if line["event"] == "lines_lost"] == [2]
    assert ["t4"] in [line.get("therapist_ids") for line in said]
    names = [line["event"] for line in logged if line["event"].startswith("access log")]
    assert names == ["access log write failed", "access log written again"]


def test_a_required_log_refuses_calls_before_they_begin(strict_api: ApiDriver, log: Log) -> None:
    log.fail()
    found = refused(strict_api.send, "GetTherapist", therapist_id="t1")  # the first one, whose line cannot be written
    assert (found.reason, "RetryInfo" in found.details) == (REFUSED, True)
    assert refused(strict_api.therapists, "t2").reason == REFUSED
    assert refused(next, strict_api.watch()).reason == REFUSED
    assert health(strict_api) in {SERVING, NOT_SERVING}  # a health check is answered all the same
    log.repair()
    eventually(lambda: answers(strict_api))
    assert refused(strict_api.send, "GetTherapist", therapist_id="t2").reason == "THERAPIST_NOT_FOUND"


def answers(api: ApiDriver) -> bool:
    with suppress(Exception):
        return bool(api.send("GetTherapist", therapist_id="t1").therapist.therapist_id)
    return False


@pytest.mark.slow
def test_a_server_without_its_required_log_is_not_ready(strict_api: ApiDriver, log: Log) -> None:
    log.fail()
    assert refused(strict_api.send, "GetTherapist", therapist_id="t1").reason == REFUSED
    eventually(lambda: health(strict_api) == NOT_SERVING)
    log.repair()
    eventually(lambda: health(strict_api) == SERVING)  # without a call
    assert answers(strict_api)


def test_a_write_whose_line_fails_is_answered_because_it_has_committed(strict_api: ApiDriver, log: Log) -> None:
    log.fail()
    strict_api.therapists("t2")
    assert refused(strict_api.therapists, "t3").reason == REFUSED
    log.repair()
    eventually(lambda: answers(strict_api))
    assert [one.therapist_id for one in strict_api.send("ListTherapists").therapists] == ["t1", "t2"]


def test_a_call_that_only_validates_is_not_answered_without_its_line(strict_api: ApiDriver, log: Log) -> None:
    """It shows the record, as a read does, and the change log does not have it."""
    log.fail()
    found = refused(strict_api.send, "UpdateTherapist", therapist={"therapist_id": "t1"}, validate_only=True)
    assert found.reason == REFUSED
    log.repair()


def test_the_error_of_a_read_is_withheld_too(strict_api: ApiDriver, log: Log) -> None:
    """It says whether a record exists."""
    assert refused(strict_api.send, "GetTherapist", therapist_id="missing").reason == "THERAPIST_NOT_FOUND"
    log.fail()
    assert refused(strict_api.send, "GetTherapist", therapist_id="missing").reason == REFUSED
    log.repair()


def test_an_open_watch_ends_when_a_required_log_cannot_be_written(
    strict_api: ApiDriver, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.05)
    watch = strict_api.watch()
    next(watch)
    log.fail()
    assert refused(strict_api.send, "GetTherapist", therapist_id="t1").reason == REFUSED  # which finds out
    assert refused(list, watch).reason == REFUSED
    log.repair()


def test_a_required_log_that_was_deleted_refuses_calls_until_a_new_one_can_be_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deleted file still accepts lines, but no path leads to it."""
    monkeypatch.setattr(log_file, "_CHECK_INTERVAL_SECONDS", 0.0)
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "access.log"
    with serving(tmp_path, access_log=path, access_log_required=True) as server, ApiDriver(server.address) as api:
        api.therapists("t1")
        path.unlink()
        folder.rmdir()
        for _ in range(2):
            assert refused(api.send, "GetTherapist", therapist_id="t1").reason == REFUSED
        folder.mkdir()
        assert answers(api)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["lines_lost", "call"]


def test_a_pipe_without_a_reader_blocks_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "_CHECK_INTERVAL_SECONDS", 0.0)
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    file = LogFile(path)
    path.rename(moved)
    path, reader = pipe(tmp_path)
    os.close(reader)
    path.rename(tmp_path / "access.log")
    writer = threading.Thread(target=file.write, args=("line\n",), name="writer", daemon=True)
    writer.start()
    join(writer)
    file.close()
    assert moved.read_text() == "line\n"
    with pytest.raises(OSError, match="No such device"):
        LogFile(tmp_path / "access.log")


class HangingSink:
    """Refuses the first line, and hangs at the second one."""

    def __init__(self) -> None:
        self.lines = 0
        self.hangs, self.released = threading.Event(), threading.Event()

    def write(self, _line: str) -> None:
        self.lines += 1
        if self.lines == 1:
            raise OSError
        self.hangs.set()
        self.released.wait(HUNG_SECONDS)


def test_no_call_begins_while_another_one_still_tries_the_log() -> None:
    sink = HangingSink()
    log = AccessLog(sink, required=True)
    assert not log.write("lost\n")
    first = threading.Thread(target=log.check, name="first")
    first.start()
    assert sink.hangs.wait(HUNG_SECONDS)
    with pytest.raises(AccessLogUnavailable):
        log.check()
    sink.released.set()
    join(first)
    log.check()


def test_a_disk_that_hangs_holds_up_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes to a terminal whose other side reads nothing block, as those to a file on a dead mount."""
    monkeypatch.setattr(log_file, "WRITE_TIMEOUT_SECONDS", 0.2)
    ours, theirs = pty.openpty()
    file = LogFile(Path(os.ttyname(theirs)))
    hangs = threading.Thread(target=file.write, args=("x" * 1_000_000 + "\n",), name="hangs")
    hangs.start()
    eventually(file._lock.locked)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            file.write("not written\n")
    os.set_blocking(ours, False)

    def has_ended() -> bool:
        _drain(ours, bytearray())
        return not hangs.is_alive()

    eventually(has_ended)
    os.close(theirs)
    os.close(ours)
