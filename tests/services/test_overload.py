"""More calls than can be taken on: who waits, how long, who is turned away and what that tells; who is not touched."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.client import connect
from caseload.v1.therapist_service_pb2 import ListTherapistsRequest
from caseload_server.rpc.grpcio_compat import grpcio_supported
from caseload_server.rpc.retry_delays import MAX_DELAY_SECONDS, MIN_DELAY_SECONDS, SPACING_SECONDS, RetryDelays
from caseload_server.rpc.server import CaseloadServer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.clinic import Clinic, full_name, refused, request
from tests.conftest import serving
from tests.hostile import frames
from tests.locking import holding_the_lock
from tests.metrics.reading import numbers, until
from tests.running import refusal
from tests.security.serving import LogReader

SERVING = health_pb2.HealthCheckResponse.SERVING
RETRYING = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.001s",
                    "maxBackoff": "0.001s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
)
"""Of a client whose own back-off is next to none."""


def test_the_inside_of_this_grpcio_is_known() -> None:
    """Else nothing would be turned away, and each start would only warn of it."""
    assert grpcio_supported()


def creating(clinic: Clinic, patient_id: str) -> Any:
    """A write under way."""
    make: Any = clinic.channel.unary_unary(full_name("CreatePatient"))
    body = request("CreatePatient", patient_id=patient_id, patient={"display_name": "A"})
    return make.future(body.SerializeToString(), timeout=30)


def await_writes(server: CaseloadServer, running: int, waiting: int = 0) -> None:
    """Until so many have a thread, and so many wait for one."""
    now = {"in_flight": running, "waiting": waiting}
    until(server.metrics_address, lambda seen: all(seen(name, pool="write") == now[name] for name in now))


def answered(calls: list[Any]) -> list[str]:
    """How each ended: OK, or its reason."""
    ends = []
    for call in calls:
        try:
            call.result()
        except grpc.RpcError as error:
            ends.append(refusal(error).reason)
        else:
            ends.append("OK")
    return ends


def test_who_finds_the_queue_full_is_turned_away_at_once_and_nothing_is_done(database_url: str) -> None:
    with (
        serving(
            database_url, threads=2, max_queue_depth=3, queue_timeout_seconds=20, metrics_address="127.0.0.1:0"
        ) as server,
        Clinic(server.address) as clinic,
    ):
        with holding_the_lock(database_url):
            calls = [creating(clinic, f"p{number}") for number in range(2)]
            await_writes(server, 2)
            calls += [creating(clinic, f"p{number}") for number in range(2, 5)]
            await_writes(server, 2, waiting=3)
            began = time.monotonic()
            assert answered([creating(clinic, f"p{number}") for number in range(5, 8)]) == ["OVERLOADED"] * 3
            assert time.monotonic() - began < 5
        assert answered(calls) == ["OK"] * 5
        assert len(clinic.send("ListPatients").patients) == 5


def test_no_call_waits_longer_than_the_bound_though_no_thread_is_free(database_url: str) -> None:
    """And once the first has waited half as long, nobody begins to wait."""
    bound = 1.5
    with (
        serving(database_url, threads=1, queue_timeout_seconds=bound, metrics_address="127.0.0.1:0") as server,
        Clinic(server.address) as clinic,
    ):
        ended: dict[str, float] = {}
        with holding_the_lock(database_url):
            first = creating(clinic, "p0")
            await_writes(server, 1)
            began = time.monotonic()
            waiting = creating(clinic, "p1")
            waiting.add_done_callback(lambda _: ended.setdefault("waiting", time.monotonic() - began))
            time.sleep(bound * 0.6)
            late = creating(clinic, "p2")
            late.add_done_callback(lambda _: ended.setdefault("late", time.monotonic() - began))
            assert answered([waiting, late]) == ["OVERLOADED"] * 2
        assert answered([first]) == ["OK"]
    assert bound * 0.6 <= ended["late"] < ended["waiting"]
    assert bound <= ended["waiting"] < bound + 2


def test_reads_go_on_while_writers_hold_every_thread_they_have(database_url: str) -> None:
    with serving(database_url, threads=2, metrics_address="127.0.0.1:0") as server, Clinic(server.address) as clinic:
        clinic.therapists("t1")
        with holding_the_lock(database_url):
            writes = [creating(clinic, f"p{number}") for number in range(10)]
            until(server.metrics_address, lambda seen: seen("in_flight", pool="write") == 2)
            assert clinic.send("GetTherapist", therapist_id="t1").therapist.therapist_id == "t1"
        answered(writes)


def test_how_many_run_and_wait_is_told(database_url: str) -> None:
    with (
        serving(database_url, threads=2, queue_timeout_seconds=20, metrics_address="127.0.0.1:0") as server,
        Clinic(server.address) as clinic,
    ):
        address = server.metrics_address
        with holding_the_lock(database_url):
            writes = [creating(clinic, f"p{number}") for number in range(5)]
            held = until(address, lambda seen: seen("waiting", pool="write") == 3)
            assert (held("in_flight", pool="write"), held("in_flight", pool="read")) == (2, 0)
        answered(writes)
        until(address, lambda seen: seen("waiting") == seen("in_flight") == 0)


def test_health_and_readiness_are_answered_while_calls_are_turned_away(database_url: str) -> None:
    with (
        serving(database_url, threads=1, max_queue_depth=2) as server,
        Clinic(server.address) as clinic,
        Clinic(server.address) as other,
    ):
        clinic.therapists(*(f"t{number}" for number in range(50)))
        health: Any = health_pb2_grpc.HealthStub(other.channel)
        listing: Any = clinic.channel.unary_unary(full_name("ListTherapists"))
        with flooding(listing) as codes:
            for name in ("", "caseload.v1.TherapistService") * 10:
                answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
                assert answer.status == SERVING
                time.sleep(0.05)
    assert {"OK", "RESOURCE_EXHAUSTED"} == set(codes)


def test_a_flood_of_health_checks_has_every_one_answered(database_url: str) -> None:
    """Whoever asks, without a key too, must not make the server look dead."""
    with (
        serving(database_url, max_queue_depth=1) as server,
        Clinic(server.address) as clinic,
        flooding(clinic.channel.unary_unary("/grpc.health.v1.Health/Check")) as codes,
    ):
        time.sleep(2)
    assert len(codes) > 100
    assert set(codes) == {"OK"}


def test_a_health_watch_too_many_has_a_line_in_the_access_log(database_url: str, tmp_path: Path) -> None:
    log = LogReader(tmp_path / "access.log")
    with serving(database_url, access_log=log.path) as server, Clinic(server.address) as clinic, ExitStack() as ending:
        stub: Any = health_pb2_grpc.HealthStub(clinic.channel)
        for _ in range(256):
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
            ending.callback(watch.cancel)
            assert next(watch).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=20))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert [(line["method"], line["code"]) for line in log.lines()] == [
            ("/grpc.health.v1.Health/Watch", "UNIMPLEMENTED")
        ]


def test_a_call_without_a_message_that_is_turned_away_stops_nobody(database_url: str) -> None:
    """The library's own way to its message waits for the very thread that turns calls away."""
    path = frames.literal(b":path", b"/grpc.health.v1.Health/Watch")
    without_message = frames.headers(1, frames.CALL.replace(frames.literal(b":path", frames.METHOD), path), ends=True)
    with serving(database_url) as server, Clinic(server.address) as clinic, ExitStack() as ending:
        stub: Any = health_pb2_grpc.HealthStub(clinic.channel)
        for _ in range(256):
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
            ending.callback(watch.cancel)
            assert next(watch).status == SERVING
        host, port = server.address.split(":")
        caller = ending.enter_context(socket.create_connection((host, int(port))))
        caller.sendall(frames.GREETING + without_message)
        time.sleep(0.5)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
        with Clinic(server.address) as other:
            other.therapists("t1")


@contextmanager
def flooding(call: Any) -> Iterator[list[str]]:
    """Sixteen callers who never stop, and who come again at once; the list gets the code of each call."""
    enough, codes = threading.Event(), list[str]()

    def caller() -> None:
        while not enough.is_set():
            codes.append(call.future(b"", timeout=20).code().name)

    threads = [threading.Thread(target=caller) for _ in range(16)]
    for thread in threads:
        thread.start()
    yield codes
    enough.set()
    for thread in threads:
        thread.join()


def test_who_is_turned_away_has_a_line_in_the_access_log(database_url: str, tmp_path: Path) -> None:
    log = LogReader(tmp_path / "access.log")
    with (
        serving(
            database_url, threads=1, max_queue_depth=1, access_log=log.path, metrics_address="127.0.0.1:0"
        ) as server,
        Clinic(server.address) as clinic,
        holding_the_lock(database_url),
    ):
        calls = [creating(clinic, "p0")]
        await_writes(server, 1)
        calls += [creating(clinic, f"p{number}") for number in (1, 2)]
        until(server.metrics_address, lambda seen: seen("refusals_total", reason="OVERLOADED") >= 1)
        line = log.lines()[-1]
        assert (line["code"], line["reason"]) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert (line["method"], line["caller"]) == (full_name("CreatePatient"), "")
        assert not {"patient_ids", "request_id"} & line.keys()


def test_the_retries_of_grpc_come_when_they_are_told_to(database_url: str) -> None:
    """Though the client's own back-off is a millisecond: five tries at once would all be turned away."""
    with (
        serving(
            database_url, threads=1, max_queue_depth=1, queue_timeout_seconds=20, metrics_address="127.0.0.1:0"
        ) as server,
        Clinic(server.address) as clinic,
        grpc.insecure_channel(server.address, [("grpc.service_config", RETRYING)]) as channel,
    ):
        create: Any = channel.unary_unary(full_name("CreatePatient"))
        body = request("CreatePatient", patient_id="p2", patient={"display_name": "A"})
        with holding_the_lock(database_url):
            calls = [creating(clinic, "p0")]
            await_writes(server, 1)
            calls.append(creating(clinic, "p1"))
            await_writes(server, 1, waiting=1)
            calls.append(create.future(body.SerializeToString(), timeout=30))
            until(server.metrics_address, lambda seen: seen("refusals_total", reason="OVERLOADED") >= 1)
        assert answered(calls) == ["OK"] * 3


def test_callers_with_the_shipped_client_succeed_after_a_flood_of_others(database_url: str) -> None:
    """Which was given all the times there are to come again: theirs must lie within their deadline."""
    with (
        serving(database_url, threads=2, max_queue_depth=2, metrics_address="127.0.0.1:0") as server,
        Clinic(server.address) as clinic,
        connect(server.address, timeout=6) as caseload,  # the default is 10: the rest is for a busy machine
    ):
        clinic.therapists(*(f"t{number}" for number in range(100)))
        with flooding(clinic.channel.unary_unary(full_name("ListTherapists"))):
            time.sleep(4)
        before = numbers(server.metrics_address)("refusals_total", reason="OVERLOADED")
        with futures.ThreadPoolExecutor(32) as calling:
            calls = [calling.submit(caseload.therapists.ListTherapists, ListTherapistsRequest()) for _ in range(320)]
        assert {len(call.result().therapists) for call in calls} == {50}
        assert numbers(server.metrics_address)("refusals_total", reason="OVERLOADED") > before


def test_the_retries_of_grpc_do_not_repeat_what_would_be_refused_again(database_url: str, tmp_path: Path) -> None:
    log = LogReader(tmp_path / "access.log")
    with (
        serving(database_url, max_watches=1, access_log=log.path) as server,
        Clinic(server.address) as clinic,
        grpc.insecure_channel(server.address, [("grpc.service_config", RETRYING)]) as channel,
    ):
        held = clinic.watch()
        next(held)
        watch: Any = channel.unary_stream(full_name("WatchChanges"))
        assert refused(next, watch(b"", timeout=20)).reason == "TOO_MANY_WATCHES"
        assert [line["reason"] for line in log.lines()] == ["TOO_MANY_WATCHES"]
        held.cancel()


def test_reflection_streams_have_an_end(database_url: str) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub
    enough = threading.Event()

    def requests() -> Iterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        enough.wait(30)

    with serving(database_url) as server, grpc.insecure_channel(server.address) as channel, ExitStack() as stack:
        stack.callback(enough.set)
        streams = [stub(channel).ServerReflectionInfo(requests(), timeout=30) for _ in range(32)]
        for one in streams:
            assert next(one).list_services_response.service
        assert refused(next, stub(channel).ServerReflectionInfo(requests(), timeout=30)).reason == "OVERLOADED"


@pytest.mark.parametrize("herd", [1, 100, 5000])
def test_those_who_are_turned_away_together_do_not_come_again_together(herd: int) -> None:
    retries = RetryDelays()
    began = time.monotonic()
    times = sorted(time.monotonic() - began + retries.next_seconds() for _ in range(herd))
    took = time.monotonic() - began
    assert times[0] >= MIN_DELAY_SECONDS
    assert times[-1] <= MAX_DELAY_SECONDS + took
    in_any_second = max(sum(at <= other < at + 1 for other in times) for at in times[:: max(1, herd // 50)])
    rounds = herd * SPACING_SECONDS / (MAX_DELAY_SECONDS - MIN_DELAY_SECONDS) + 1
    assert in_any_second <= rounds / SPACING_SECONDS + 1
