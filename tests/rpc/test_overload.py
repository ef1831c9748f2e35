"""Overload: which calls are queued and for how long, which are shed with which error, and which are unaffected."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload_server.config import Config, SettingError
from caseload_server.domain import limits
from caseload_server.rpc.server import CaseloadServer, build_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.conftest import serving
from tests.hostile import http2_frames
from tests.observability.metrics_client import wait_for_metrics
from tests.rpc.shed_calls import answered, await_writes, creating
from tests.security.server_fixture import LogReader
from tests.support.api_driver import ApiDriver, full_name, refused
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, FakeClock, eventually, join
from tests.support.write_lock import holding_the_lock, wait_for_locks

pytestmark = pytest.mark.slow

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_locks(monkeypatch)


def test_a_server_with_an_unknown_grpcio_does_not_start(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(grpc._server, "_receive_message")
    with pytest.raises(SettingError, match=r"grpcio: version .* is not supported"), serving(database_url):
        raise AssertionError


def test_a_call_that_meets_a_full_queue_is_shed_at_once(database_url: str) -> None:
    with (
        serving(
            database_url,
            threads=2,
            max_queue_depth=3,
            queue_timeout_seconds=NEVER_SECONDS,
            metrics_address="127.0.0.1:0",
        ) as server,
        ApiDriver(server.address) as api,
    ):
        with holding_the_lock(database_url):
            calls = [creating(api, f"p{number}") for number in range(2)]
            await_writes(server, 2)
            calls += [creating(api, f"p{number}") for number in range(2, 5)]
            await_writes(server, 2, waiting=3)
            assert answered([creating(api, f"p{number}") for number in range(5, 8)]) == ["OVERLOADED"] * 3
            assert not any(call.done() for call in calls)
        assert answered(calls) == ["OK"] * 5
        assert len(api.send("ListPatients").patients) == 5


def test_no_call_waits_longer_than_the_queue_timeout(database_url: str) -> None:
    """After the oldest call has waited half the timeout, no further call is queued."""
    clock, bound = FakeClock(), 0.5
    with timed(database_url, clock, threads=1, queue_timeout_seconds=bound) as server, ApiDriver(server.address) as api:
        with holding_the_lock(database_url):
            first = creating(api, "p0")
            await_writes(server, 1)
            waiting = creating(api, "p1")
            await_writes(server, 1, waiting=1)
            clock.advance(bound * 0.6)
            assert answered([creating(api, "p2")]) == ["OVERLOADED"]
            await_writes(server, 1, waiting=1)
            clock.advance(bound * 0.4)
            assert answered([waiting]) == ["OVERLOADED"]
            await_writes(server, 1)
        assert answered([first]) == ["OK"]


def test_calls_are_queued_until_the_oldest_reaches_half_the_queue_timeout(database_url: str) -> None:
    clock, bound = FakeClock(), 0.5
    with timed(database_url, clock, threads=1, queue_timeout_seconds=bound) as server, ApiDriver(server.address) as api:
        with holding_the_lock(database_url):
            calls = [creating(api, "p0")]
            await_writes(server, 1)
            for waiting in (1, 2):
                calls.append(creating(api, f"p{waiting}"))
                await_writes(server, 1, waiting)
                clock.advance(bound * 0.4)
        assert answered(calls) == ["OK"] * 3


@contextmanager
def timed(database_url: str, clock: FakeClock, **settings: Any) -> Iterator[CaseloadServer]:
    """A server whose queue uses the clock of the test."""
    fixed: Any = {"address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0", "drain_seconds": 0}
    server = build_server(Config(database=database_url, **fixed, **settings), monotonic=clock)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_reads_are_answered_while_writes_occupy_every_write_thread(database_url: str) -> None:
    with serving(database_url, threads=2, metrics_address="127.0.0.1:0") as server, ApiDriver(server.address) as api:
        api.therapists("t1")
        with holding_the_lock(database_url):
            writes = [creating(api, f"p{number}") for number in range(10)]
            wait_for_metrics(server.metrics_address, lambda seen: seen("in_flight", pool="write") == 2)
            assert api.send("GetTherapist", therapist_id="t1").therapist.therapist_id == "t1"
        answered(writes)


def test_metrics_report_running_and_queued_calls(database_url: str) -> None:
    with (
        serving(database_url, threads=2, queue_timeout_seconds=NEVER_SECONDS, metrics_address="127.0.0.1:0") as server,
        ApiDriver(server.address) as api,
    ):
        address = server.metrics_address
        with holding_the_lock(database_url):
            writes = [creating(api, f"p{number}") for number in range(5)]
            held = wait_for_metrics(address, lambda seen: seen("queue_depth", pool="write") == 3)
            assert (held("in_flight", pool="write"), held("in_flight", pool="read")) == (2, 0)
        answered(writes)
        wait_for_metrics(address, lambda seen: seen("queue_depth") == seen("in_flight") == 0)


def test_health_and_readiness_are_answered_while_calls_are_shed(database_url: str) -> None:
    with (
        serving(database_url, threads=1, max_queue_depth=2) as server,
        ApiDriver(server.address) as api,
        ApiDriver(server.address) as other,
    ):
        api.therapists(*(f"t{number}" for number in range(50)))
        health: Any = health_pb2_grpc.HealthStub(other.channel)
        listing: Any = api.channel.unary_unary(full_name("ListTherapists"))
        with flooding(listing) as codes:
            for name in ("", "caseload.v1.TherapistService") * 10:
                rejected = codes.count("RESOURCE_EXHAUSTED")
                eventually(lambda rejected=rejected: codes.count("RESOURCE_EXHAUSTED") > rejected)  # type: ignore[misc]
                answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=HUNG_SECONDS)
                assert answer.status == SERVING
            eventually(lambda: "OK" in codes)
    assert {"OK", "RESOURCE_EXHAUSTED"} == set(codes)


def test_every_check_in_a_flood_of_health_checks_is_answered(database_url: str) -> None:
    """A caller, even one without a key, must not make the server look unhealthy."""
    with (
        serving(database_url, max_queue_depth=1) as server,
        ApiDriver(server.address) as api,
        flooding(api.channel.unary_unary("/grpc.health.v1.Health/Check")) as codes,
    ):
        eventually(lambda: len(codes) > 2000)
    assert set(codes) == {"OK"}


def open_all_health_watches(server: CaseloadServer, ending: ExitStack) -> None:
    """Opens as many health watches as one process allows, on several connections."""
    for number in range(limits.MAX_HEALTH_WATCHES):
        if number % limits.MAX_CALLS_PER_CONNECTION == 0:
            own_connection = [("grpc.use_local_subchannel_pool", 1)]
            channel = ending.enter_context(grpc.insecure_channel(server.address, own_connection))
            stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=2 * HUNG_SECONDS)
        ending.callback(watch.cancel)
        assert next(watch).status == SERVING


def test_a_health_watch_above_the_limit_is_in_the_access_log(database_url: str, tmp_path: Path) -> None:
    log = LogReader(tmp_path / "access.log")
    with serving(database_url, access_log=log.path) as server, ApiDriver(server.address) as api, ExitStack() as ending:
        stub: Any = health_pb2_grpc.HealthStub(api.channel)
        open_all_health_watches(server, ending)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=HUNG_SECONDS))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert [(line["method"], line["code"]) for line in log.lines()] == [
            ("/grpc.health.v1.Health/Watch", "UNIMPLEMENTED")
        ]


def test_shedding_a_call_without_a_message_does_not_block_other_callers(database_url: str) -> None:
    """The gRPC library reads a message on the same thread that sheds calls, so it must not wait for one."""
    path = http2_frames.literal(b":path", b"/grpc.health.v1.Health/Watch")
    without_message = http2_frames.headers(
        1, http2_frames.CALL.replace(http2_frames.literal(b":path", http2_frames.METHOD), path), ends=True
    )
    with serving(database_url) as server, ApiDriver(server.address) as api, ExitStack() as ending:
        stub: Any = health_pb2_grpc.HealthStub(api.channel)
        open_all_health_watches(server, ending)
        host, port = server.address.split(":")
        caller = ending.enter_context(socket.create_connection((host, int(port))))
        caller.sendall(http2_frames.GREETING + without_message)
        caller.settimeout(HUNG_SECONDS)
        http2_frames.read_until(caller, b"grpc-status")
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=HUNG_SECONDS).status == SERVING
        with ApiDriver(server.address) as other:
            other.therapists("t1")


@contextmanager
def flooding(call: Any) -> Iterator[list[str]]:
    """Runs sixteen callers that retry immediately; yields the list of the status codes of their calls."""
    enough, codes = threading.Event(), list[str]()

    def caller() -> None:
        while not enough.is_set():
            codes.append(call.future(b"", timeout=HUNG_SECONDS).code().name)

    threads = [threading.Thread(target=caller) for _ in range(16)]
    for thread in threads:
        thread.start()
    try:
        yield codes
    finally:
        enough.set()
        join(*threads)


def test_a_shed_call_is_in_the_access_log(database_url: str, tmp_path: Path) -> None:
    log = LogReader(tmp_path / "access.log")
    with (
        serving(
            database_url, threads=1, max_queue_depth=1, access_log=log.path, metrics_address="127.0.0.1:0"
        ) as server,
        ApiDriver(server.address) as api,
        holding_the_lock(database_url),
    ):
        calls = [creating(api, "p0")]
        await_writes(server, 1)
        calls += [creating(api, f"p{number}") for number in (1, 2)]
        wait_for_metrics(server.metrics_address, lambda seen: seen("call_errors_total", reason="OVERLOADED") >= 1)
        line = eventually(log.lines)[-1]
        assert (line["code"], line["reason"]) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert (line["method"], line["caller"]) == (full_name("CreatePatient"), "local")
        assert not {"patient_ids", "request_id"} & line.keys()


def test_reflection_streams_are_limited(database_url: str) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub
    enough = threading.Event()

    def requests() -> Iterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        enough.wait(HUNG_SECONDS)

    with serving(database_url) as server, grpc.insecure_channel(server.address) as channel, ExitStack() as stack:
        stack.callback(enough.set)
        streams = [stub(channel).ServerReflectionInfo(requests(), timeout=HUNG_SECONDS) for _ in range(32)]
        for one in streams:
            assert next(one).list_services_response.service
        assert (
            refused(next, stub(channel).ServerReflectionInfo(requests(), timeout=HUNG_SECONDS)).reason == "OVERLOADED"
        )
