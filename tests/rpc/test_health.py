"""Health, as load balancers use it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import pytest
from caseload_server.config import Config
from caseload_server.rpc.server import build_server
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import NewDatabase
from tests.support.api_driver import RPCS, ApiDriver
from tests.support.servers import NO_LOG, Client
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually, join

SERVICES = sorted({rpc.containing_service.full_name for rpc in RPCS.values()})
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health_of(client: Client) -> Any:
    return health_pb2_grpc.HealthStub(client.channel)


@pytest.mark.parametrize("name", ["", *SERVICES])
def test_liveness_and_every_service_report_serving(client: Client, name: str) -> None:
    answer = health_of(client).Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == SERVING


def test_the_health_of_an_unknown_service_is_not_found(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health_of(client).Check(health_pb2.HealthCheckRequest(service="caseload.v1.Nothing"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.slow
def test_a_health_watch_reports_not_serving_and_does_not_delay_the_stop(database_url: str) -> None:
    drain_seconds = 2.0  # the watch must report NOT_SERVING within this time; it takes milliseconds
    server = build_server(
        Config("127.0.0.1:0", database_url, drain_seconds=drain_seconds, grace_seconds=NEVER_SECONDS, access_log=NO_LOG)
    )
    server.start()
    client = Client(server.address)
    watches = [
        health_of(client).Watch(health_pb2.HealthCheckRequest(service=service), timeout=2 * HUNG_SECONDS)
        for service in SERVICES
    ]
    assert [next(watch).status for watch in watches] == [SERVING] * 4
    with ThreadPoolExecutor(4) as threads:
        seen = threads.map(until_it_ends, watches)
        stopping = threading.Thread(target=server.stop, daemon=True)
        stopping.start()
        join(stopping)
        client.close()
        assert list(seen) == [[NOT_SERVING]] * 4


def test_a_stopped_server_leaves_no_threads(new_database: NewDatabase) -> None:
    before = threading.active_count()
    for _ in range(2):
        with new_database() as url:
            server = build_server(Config("127.0.0.1:0", url, drain_seconds=0, access_log=NO_LOG))
            server.start()
            with ApiDriver(server.address) as api:
                next(api.watch())
                api.patients("p1")
                server.stop()
    eventually(
        lambda: threading.active_count() <= before + 2, threading.enumerate
    )  # two may belong to the gRPC library


def until_it_ends(watch: Any) -> list[int]:
    seen: list[int] = []
    with suppress(grpc.RpcError):
        seen.extend(answer.status for answer in watch)
    return seen


def test_health_is_answered_with_more_watches_than_threads(client: Client) -> None:
    stub = health_of(client)
    watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(Config.threads + 1)]
    assert [next(watch).status for watch in watches] == [SERVING] * len(watches)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=HUNG_SECONDS).status == SERVING
    for watch in watches:
        watch.cancel()
