"""Readiness follows a database that really goes, and comes back with it; liveness stays."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from caseload_server.observability.readiness import LIVENESS, READINESS
from caseload_server.store.backends import factory
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.postgres.cluster import QUICK, Cluster, NoPostgres
from tests.process.starting import caseload, url
from tests.running import ServerProcess

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
FALL_SECONDS: Final = 10
"""As promised in docs/operations.md; and the other."""
RETURN_SECONDS: Final = 5


class Watched:
    """All that a health watch of one name says."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        self.said: list[int] = []
        self._news = threading.Condition()
        stub: Any = health_pb2_grpc.HealthStub(channel)
        self._watch = stub.Watch(health_pb2.HealthCheckRequest(service=name))
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        with suppress(grpc.RpcError):
            for answer in self._watch:
                with self._news:
                    self.said.append(answer.status)
                    self._news.notify_all()

    def is_told(self, *statuses: int, within: float) -> bool:
        """Whether it says exactly these, from its beginning, within so many seconds."""
        with self._news:
            return self._news.wait_for(lambda: self.said == list(statuses), within)


class Watches:
    """Of liveness and of all four services."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self._channel = grpc.insecure_channel(server.address)
        self.liveness = Watched(self._channel, LIVENESS)
        self.readiness = [Watched(self._channel, name) for name in READINESS]

    def close(self) -> None:
        self._channel.close()

    def are_told(self, *statuses: int, within: float) -> bool:
        until = time.monotonic() + within
        return all(one.is_told(*statuses, within=max(0, until - time.monotonic())) for one in self.readiness)


@contextmanager
def watching(database: str) -> Iterator[Watches]:
    with ServerProcess(database) as server:
        watches = Watches(server)
        try:
            assert watches.are_told(SERVING, within=10)
            yield watches
            assert watches.liveness.said == [SERVING]
            assert checked(server, "--liveness") == 0
        finally:
            watches.close()


def checked(server: ServerProcess, *arguments: str) -> int:
    return caseload(Path.cwd(), "check", "--address", server.address, *arguments).returncode


def go_and_come_back(watches: Watches, go: Any, come_back: Any) -> None:
    go()
    assert watches.are_told(SERVING, NOT_SERVING, within=FALL_SECONDS)
    assert checked(watches.server) == 1
    assert checked(watches.server, "--liveness") == 0
    come_back()
    assert watches.are_told(SERVING, NOT_SERVING, SERVING, within=RETURN_SECONDS)
    assert checked(watches.server) == 0
    time.sleep(2)
    assert watches.are_told(SERVING, NOT_SERVING, SERVING, within=0)


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
    """All of it: connections stay open, and nobody answers."""
    pids = (cluster.pid, *cluster.children())
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_it_goes_with_a_postgresql_that_is_stopped_and_comes_back_with_it(cluster: Cluster) -> None:
    with watching(cluster.url()) as watches:
        go_and_come_back(watches, cluster.stop, cluster.start)


def test_it_goes_with_a_postgresql_that_hangs_and_comes_back_with_it(cluster: Cluster) -> None:
    with watching(cluster.url()) as watches, ExitStack() as hanging:
        go_and_come_back(watches, lambda: hanging.enter_context(frozen(cluster)), hanging.close)


def test_a_moments_failure_of_postgresql_does_not_move_it(cluster: Cluster) -> None:
    with watching(cluster.url()) as watches:
        for _ in range(3):
            with frozen(cluster):
                time.sleep(0.7)
            time.sleep(1.5)
        with cluster.connect() as admin:  # every connection is cut, the one that readiness asks with too
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        time.sleep(5)
        assert watches.are_told(SERVING, within=0)


def test_it_goes_with_a_sqlite_file_that_is_moved_away_and_comes_back_with_it(tmp_path: Path) -> None:
    file, away = tmp_path / "caseload.db", tmp_path / "away.db"
    with watching(url(file)) as watches:
        go_and_come_back(watches, lambda: file.rename(away), lambda: away.rename(file))


def test_it_goes_with_a_sqlite_file_that_another_took_the_place_of(tmp_path: Path) -> None:
    file, away, other = (tmp_path / name for name in ("caseload.db", "away.db", "other.db"))
    factory.migrate(url(other))

    def replace() -> None:
        file.rename(away)
        other.rename(file)

    with watching(url(file)) as watches:
        go_and_come_back(watches, replace, lambda: away.rename(file))
