"""The connections of callers, as metrics and log events show them."""

import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from caseload_server.observability.connections import Connections
from structlog.testing import capture_logs

from tests.observability.metrics_client import wait_for_metrics
from tests.security.server_fixture import serving
from tests.support.http2_frames import Frames
from tests.support.servers import ServerProcess, free_address
from tests.support.waiting import eventually

FEW_FILES: Final = ("bash", "-c", 'ulimit -n 600; exec "$0" "$@"', sys.executable, "-m", "caseload_server")


@pytest.mark.slow
def test_connections_are_a_gauge_and_their_limit_leaves_an_event(tmp_path: Path) -> None:
    with (
        capture_logs() as logged,
        serving(tmp_path, max_connections=5, metrics_address="127.0.0.1:0") as server,
        ExitStack() as stack,
    ):
        held = [stack.enter_context(Frames(server.address)) for _ in range(4)]
        for frames in held:
            frames.read()
        wait_for_metrics(server.metrics_address, lambda seen: seen("connections") == 4)
        assert [line for line in logged if line["event"].startswith("connection")] == []
        stack.enter_context(Frames(server.address)).read()
        found = wait_for_metrics(server.metrics_address, lambda seen: seen("connections") == seen("connections_limit"))
        assert found("open_files") > 5
        assert found("open_files_limit") >= 600
        eventually(lambda: any(line["event"] == "connection limit reached" for line in logged))
        for frames in held:
            frames.socket.close()
        eventually(lambda: any(line["event"] == "connections below the limit again" for line in logged))
    said = [line for line in logged if line["event"].startswith("connection")]
    assert [(line["event"], line["max_connections"]) for line in said] == [
        ("connection limit reached", 5),
        ("connections below the limit again", 5),
    ]


@pytest.mark.slow
def test_connections_of_another_process_on_the_port_are_not_counted(tmp_path: Path) -> None:
    """Workers share a port."""
    with ServerProcess(f"sqlite:///{tmp_path}/caseload.db") as server, Frames(server.address) as frames:
        frames.read()
        assert Connections(int(server.address.rpartition(":")[2]), 5).count() == 0


def test_connections_that_are_not_accepted_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
        connections = Connections(listening.getsockname()[1], 5)
        for _ in range(3):
            stack.enter_context(socket.create_connection(listening.getsockname()))
        eventually(lambda: connections.waiting() == 3)
        accepted, _ = listening.accept()
        assert (connections.waiting(), connections.count()) == (2, 1)
        accepted.close()
        listening.getsockname()  # it is still open


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_with_few_open_files_shows_the_connections_that_it_can_have(tmp_path: Path, workers: int) -> None:
    metrics = free_address()
    arguments = ("--workers", str(workers), "--metrics-address", metrics)
    database = f"sqlite:///{tmp_path}/caseload.db"
    with ServerProcess(database, *arguments, command=FEW_FILES) as server, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(Frames(server.address)).read()
        found = wait_for_metrics(metrics, lambda seen: seen("connections") == 20)
        assert found("connections_limit") == 200 * workers
        assert found("open_files_limit") == 600
        assert '"max_connections": 200' in server.stop()[1]
