"""A server without a log reader, or with a stalled one, still tracks its database and stops."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from caseload_server.observability.readiness import READINESS_SERVICES
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.process.command_runner import url
from tests.process.worker_processes import WorkersServer
from tests.support.api_driver import ApiDriver, full_name
from tests.support.servers import ServerProcess
from tests.support.waiting import HUNG_SECONDS, eventually

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def health(api: ApiDriver) -> int:
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=READINESS_SERVICES[0]), timeout=HUNG_SECONDS).status)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_without_a_log_reader_tracks_its_database_and_drains(tmp_path: Path, workers: int) -> None:
    file, away = tmp_path / "caseload.db", tmp_path / "away.db"
    arguments = ("--workers", str(workers), "--drain-seconds", "6")
    with ServerProcess(url(file), *arguments, access_log=None) as server, ApiDriver(server.address) as api:
        assert server.process.stderr
        server.process.stderr.close()
        api.therapists("t1")
        file.rename(away)
        eventually(lambda: health(api) == NOT_SERVING)
        away.rename(file)
        eventually(lambda: health(api) == SERVING)
        server.process.terminate()
        eventually(lambda: health(api) == NOT_SERVING)
        api.therapists("t2")
        assert server.process.wait(HUNG_SECONDS) == 0


def test_workers_without_a_log_reader_are_restarted(tmp_path: Path) -> None:
    with WorkersServer(url(tmp_path / "caseload.db")) as server:
        assert server.process.stderr
        server.process.stderr.close()
        for _ in range(2):
            killed, *_ = before = server.workers
            os.kill(killed, signal.SIGKILL)
            eventually(lambda before=before: len(server.workers - before) == 1)  # type: ignore[misc]


@contextmanager
def full_log(server: ServerProcess) -> Iterator[ApiDriver]:
    """A client of the server, after its log pipe is full."""
    with ApiDriver(server.address) as api:
        listing: Any = api.channel.unary_unary(full_name("ListTherapists"))
        calls = [listing.future(b"", timeout=HUNG_SECONDS) for _ in range(1000)]
        eventually(lambda: any(call.done() for call in calls))
        yield api


def test_a_server_with_a_full_log_pipe_answers_and_stops(tmp_path: Path) -> None:
    """Rejected calls are logged too, and their lines must not delay other calls."""
    arguments = ("--drain-seconds", "1", "--grace-seconds", "1")
    with (
        ServerProcess(url(tmp_path / "caseload.db"), *arguments, access_log=None) as server,
        full_log(server) as api,
    ):
        with ApiDriver(server.address, alone=True) as other:
            assert health(other) == SERVING
        api.therapists("t1")
        server.process.terminate()
        assert server.process.wait(HUNG_SECONDS) == 0


def test_a_server_with_a_hung_access_log_stops(tmp_path: Path) -> None:
    """Like a hung disk: the thread that accepts and rejects calls and the watch threads block for ever."""
    log = tmp_path / "access.log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    arguments = ("--drain-seconds", "0", "--grace-seconds", "1")
    with (
        ServerProcess(url(tmp_path / "caseload.db"), *arguments, access_log=str(log)) as server,
        ApiDriver(server.address, alone=True) as other,
    ):
        # Before the log is full: after that no thread accepts a call.
        stub: Any = health_pb2_grpc.HealthStub(other.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=HUNG_SECONDS)
        next(watch)
        with full_log(server) as api:
            time.sleep(0.7)  # from now on the server rejects calls at once
            listing: Any = api.channel.unary_unary(full_name("ListTherapists"))
            calls = [listing.future(b"", timeout=HUNG_SECONDS) for _ in range(200)]
            watch.cancel()
            time.sleep(0.5)
            server.process.terminate()
            assert server.process.wait(HUNG_SECONDS) == 0
            assert not any(call.done() and not call.exception() for call in calls)
    os.close(reader)
