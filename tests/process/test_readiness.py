"""Readiness follows a database that fails and recovers; liveness does not change."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from caseload_server.observability.readiness import LIVENESS_SERVICE, READINESS_SERVICES
from caseload_server.store.backends import factory
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.process.command_runner import CASELOAD, caseload, url
from tests.support.postgres.cluster import QUICK, Cluster, NoPostgres
from tests.support.servers import ServerProcess
from tests.support.waiting import eventually

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
SLOW_TO_FALL: Final = (sys.executable, str(Path(__file__).with_name("slow_readiness_command.py")))


class Watched:
    """The statuses that a health watch of one service receives."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        self.said: list[int] = []
        stub: Any = health_pb2_grpc.HealthStub(channel)
        self._watch = stub.Watch(health_pb2.HealthCheckRequest(service=name))
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        with suppress(grpc.RpcError):
            for answer in self._watch:
                self.said.append(answer.status)


class Watches:
    """Health watches of liveness and of all four services."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self._channel = grpc.insecure_channel(server.address)
        self.liveness = Watched(self._channel, LIVENESS_SERVICE)
        self.readiness = [Watched(self._channel, name) for name in READINESS_SERVICES]

    def close(self) -> None:
        self._channel.close()

    def wait_for(self, *statuses: int) -> None:
        """Waits until every service has reported exactly these statuses since the start."""
        eventually(lambda: self.say(*statuses), lambda: [one.said for one in self.readiness])

    def say(self, *statuses: int) -> bool:
        return all(one.said == list(statuses) for one in self.readiness)


@contextmanager
def watching(database: str, command: Sequence[str] = CASELOAD) -> Iterator[Watches]:
    with ServerProcess(database, command=command) as server:
        watches = Watches(server)
        try:
            watches.wait_for(SERVING)
            yield watches
            assert watches.liveness.said == [SERVING]
            assert checked(server, "--liveness") == 0
        finally:
            watches.close()


def checked(server: ServerProcess, *arguments: str) -> int:
    return caseload(Path.cwd(), "check", "--timeout", "60", "--address", server.address, *arguments).returncode


def go_and_come_back(watches: Watches, go: Any, come_back: Any) -> None:
    go()
    watches.wait_for(SERVING, NOT_SERVING)
    assert checked(watches.server) == 1
    assert checked(watches.server, "--liveness") == 0
    come_back()
    watches.wait_for(SERVING, NOT_SERVING, SERVING)
    assert checked(watches.server) == 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One that a test may stop, with a migrated database."""
    try:
        with Cluster(QUICK) as started:
            factory.migrate(started.url())
            yield started
    except NoPostgres as error:
        pytest.skip(str(error))


@contextmanager
def frozen(cluster: Cluster) -> Iterator[None]:
    """Freezes every process of the cluster: connections stay open without an answer."""
    pids = (cluster.pid, *cluster.children())
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_readiness_follows_a_postgresql_that_stops_and_restarts(cluster: Cluster) -> None:
    with watching(cluster.url()) as watches:
        go_and_come_back(watches, cluster.stop, cluster.start)


def test_readiness_follows_a_postgresql_that_hangs_and_recovers(cluster: Cluster) -> None:
    with watching(cluster.url()) as watches, ExitStack() as hanging:
        go_and_come_back(watches, lambda: hanging.enter_context(frozen(cluster)), hanging.close)


def test_a_brief_failure_of_postgresql_does_not_change_readiness(cluster: Cluster) -> None:
    with watching(cluster.url(), SLOW_TO_FALL) as watches:
        for _ in range(3):
            with frozen(cluster):
                time.sleep(0.7)
            time.sleep(1.5)
        with cluster.connect() as admin:  # closes every connection, including that of the readiness check
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        time.sleep(2)  # readiness checks once a second, so it has met the failure
        assert watches.say(SERVING)


def test_readiness_follows_a_sqlite_file_that_is_moved_and_restored(tmp_path: Path) -> None:
    file, away = tmp_path / "caseload.db", tmp_path / "away.db"
    with watching(url(file)) as watches:
        go_and_come_back(watches, lambda: file.rename(away), lambda: away.rename(file))


def test_readiness_falls_when_the_sqlite_file_is_replaced(tmp_path: Path) -> None:
    file, away, other = (tmp_path / name for name in ("caseload.db", "away.db", "other.db"))
    factory.migrate(url(other))

    def replace() -> None:
        file.rename(away)
        other.rename(file)

    with watching(url(file)) as watches:
        go_and_come_back(watches, replace, lambda: away.rename(file))
