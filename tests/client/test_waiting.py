"""A call waits for its server until its deadline, and then says why there was no connection. In both clients."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.client import aio, connect, connection_errors, error_info
from caseload.client.connection_errors import PROBE_METHOD
from caseload.v1.therapist_service_pb2 import GetTherapistRequest

from tests.client.aio.run import run
from tests.client.fake_server import FakeServer, fake_server
from tests.client.pem_files import PemFiles
from tests.support.dns_server import DnsServer
from tests.support.waiting import HUNG_SECONDS, eventually

GET = GetTherapistRequest(therapist_id="t1")
NOWHERE = "127.0.0.1:1"
Call = Callable[..., Any]
"""Calls GetTherapist: arguments of connect(), then of the call. Raises grpc.RpcError."""


def sync_call(way: Callable[[Any, dict[str, Any]], Any]) -> Call:
    def call(settings: dict[str, Any], **arguments: Any) -> Any:
        with connect(**settings) as caseload:
            return way(caseload.therapists.GetTherapist, arguments)

    return call


def aio_call(settings: dict[str, Any], **arguments: Any) -> Any:
    async def call() -> Any:
        async with aio.connect(**settings) as caseload:
            return await caseload.therapists.GetTherapist(GET, **arguments)

    return run(call())


def future_exception(method: Any, arguments: dict[str, Any]) -> None:
    error = method.future(GET, **arguments).exception()
    if error:
        raise error


WAYS = {
    "call": sync_call(lambda method, arguments: method(GET, **arguments)),
    "with_call": sync_call(lambda method, arguments: method.with_call(GET, **arguments)),
    "future": sync_call(lambda method, arguments: method.future(GET, **arguments).result()),
    "future.exception": sync_call(future_exception),
    "aio": aio_call,
}
each_way = pytest.mark.parametrize("call", WAYS.values(), ids=WAYS.keys())


@contextmanager
def resolving_later(peer: FakeServer) -> Iterator[str]:
    """The target of a name that resolves once it has been looked up."""

    def resolve() -> None:
        eventually(lambda: dns.queries)
        dns.addresses.append("127.0.0.1")

    with DnsServer() as dns:
        thread = threading.Thread(target=resolve)
        thread.start()
        yield dns.target(int(peer.address.rpartition(":")[2]))
        thread.join(HUNG_SECONDS)


@pytest.mark.slow
@each_way
def test_a_call_waits_for_a_name_that_does_not_resolve_yet(peer: FakeServer, call: Call) -> None:
    """A headless Service has no address while none of its pods is ready."""
    with resolving_later(peer) as target:
        call({"target": target, "allow_insecure": True}, timeout=HUNG_SECONDS)
    assert len(peer.attempts) == 1


@pytest.mark.slow
def test_a_call_reaches_a_server_whose_address_changed(peer: FakeServer) -> None:
    """A pod that was replaced has another address. gRPC would look the name up again after 30 seconds only."""
    port = peer.address.rpartition(":")[2]
    with DnsServer("127.0.0.1") as dns, connect(dns.target(int(port)), allow_insecure=True) as caseload:
        caseload.therapists.GetTherapist(GET)
        with fake_server(f"127.0.0.2:{port}") as moved:
            dns.addresses[:] = ["127.0.0.2"]
            peer.stop()
            caseload.therapists.GetTherapist(GET, timeout=HUNG_SECONDS / 3)
            assert len(moved.attempts) == 1


# --- the cause, once the deadline has passed


def refused(call: Call, **settings: Any) -> Any:
    """The error of a call that waits until its deadline."""
    with pytest.raises(grpc.RpcError) as caught:
        call({"timeout": 0.3, **settings})
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert error_info(error).reason == ""
    return error


def unreachable(call: Call, cause: str, **settings: Any) -> Any:
    """The error of a call that names this cause. On a busy machine one attempt to connect may not end in time."""
    return eventually(lambda: error if cause in (error := refused(call, **settings)).details() else None)


@each_way
def test_a_wrong_address_is_named(call: Call) -> None:
    error = unreachable(call, "Connection refused", target=NOWHERE)
    assert NOWHERE in error.details()
    assert error.details() in str(error)


each_client = pytest.mark.parametrize("call", [WAYS["call"], WAYS["aio"]], ids=["sync", "aio"])


@each_client
def test_a_name_that_does_not_resolve_is_named(call: Call) -> None:
    with DnsServer() as dns:
        unreachable(call, "caseload.test", target=dns.target(50051), allow_insecure=True)


@each_client
def test_a_mismatch_of_tls_is_named(peer: FakeServer, tmp_path: Path, call: Call) -> None:
    unreachable(call, "handshake failed", target=peer.address, tls_ca=PemFiles(tmp_path, "any").ca)
    assert peer.attempts == []


@each_client
def test_a_connected_server_that_is_slow_is_not_called_unreachable(peer: FakeServer, call: Call) -> None:
    call({"target": peer.address}, timeout=HUNG_SECONDS)
    peer.gates["GetTherapist"] = threading.Event()
    error = refused(call, target=peer.address)
    peer.gates["GetTherapist"].set()
    assert error.details() == "Deadline Exceeded"


class ProbeCounter(grpc.UnaryUnaryClientInterceptor):
    """Counts the probes of the connection."""

    def __init__(self) -> None:
        self.probes = 0

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.probes += details.method == PROBE_METHOD
        return continuation(details, request)


class AioProbeCounter(grpc.aio.UnaryUnaryClientInterceptor):
    """Counts the probes of the connection."""

    def __init__(self) -> None:
        self.probes = 0

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.probes += details.method == PROBE_METHOD.encode()
        return await continuation(details, request)


@pytest.fixture
def slow_peer(peer: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A connected server that does not answer."""
    monkeypatch.setattr(connection_errors, "PAUSE_SECONDS", HUNG_SECONDS)
    WAYS["call"]({"target": peer.address}, timeout=HUNG_SECONDS)
    peer.gates["GetTherapist"] = threading.Event()
    yield peer
    peer.gates["GetTherapist"].set()


def test_calls_to_a_slow_server_do_not_each_look_for_the_cause(slow_peer: FakeServer) -> None:
    counter = ProbeCounter()
    with connect(slow_peer.address, timeout=0.1, interceptors=[counter]) as caseload:
        for _ in range(3):
            with pytest.raises(grpc.RpcError):
                caseload.therapists.GetTherapist(GET)
    assert counter.probes == 1


def test_asynchronous_calls_to_a_slow_server_do_not_each_look_for_the_cause(slow_peer: FakeServer) -> None:
    async def calls() -> None:
        async with aio.connect(slow_peer.address, timeout=0.1, interceptors=[counter]) as caseload:
            for _ in range(3):
                with pytest.raises(grpc.RpcError):
                    await caseload.therapists.GetTherapist(GET)

    counter = AioProbeCounter()
    run(calls())
    assert counter.probes == 1


@pytest.mark.slow
@each_client
def test_a_port_that_accepts_connections_and_stays_silent_is_named(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        unreachable(call, "no connection: the client is still connecting", target=target)


@pytest.mark.slow
@each_client
def test_a_connected_server_that_answers_no_probe_is_not_called_unreachable(peer: FakeServer, call: Call) -> None:
    answered = peer.gates["Check"] = peer.gates["GetTherapist"] = threading.Event()
    try:
        eventually(lambda: refused(call, target=peer.address).details() == "Deadline Exceeded" and peer.probes)
    finally:
        answered.set()


def refused_at_once(address: str) -> None:
    """Calls that reach their deadline together, on one client."""
    with connect(address, timeout=0.3) as caseload:
        futures = [caseload.therapists.GetTherapist.future(GET) for _ in range(50)]
        errors: list[Any] = [future.exception() for future in futures]
        assert {error.code() for error in errors} == {grpc.StatusCode.DEADLINE_EXCEEDED}


def aio_refused_at_once(address: str) -> None:
    async def calls() -> None:
        async with aio.connect(address, timeout=0.3) as caseload:
            each = [caseload.therapists.GetTherapist(GET) for _ in range(50)]
            errors: list[Any] = await asyncio.gather(*each, return_exceptions=True)
            assert {error.code() for error in errors} == {grpc.StatusCode.DEADLINE_EXCEEDED}

    run(calls())


@pytest.mark.slow
@pytest.mark.parametrize("calls", [refused_at_once, aio_refused_at_once], ids=["sync", "aio"])
def test_calls_that_reach_their_deadline_send_at_most_one_probe_per_second(
    peer: FakeServer, calls: Callable[[str], None]
) -> None:
    peer.gates["GetTherapist"] = threading.Event()
    started = time.monotonic()
    calls(peer.address)
    seconds = time.monotonic() - started
    peer.gates["GetTherapist"].set()
    assert peer.probes <= 1 + seconds


@pytest.mark.slow
def test_a_later_call_of_the_same_client_names_the_cause_again() -> None:
    with connect(NOWHERE, timeout=0.3) as caseload:
        for _ in range(2):
            unreachable(lambda _settings: caseload.therapists.GetTherapist(GET), "refused")


def test_the_error_of_a_call_without_a_connection_is_a_call_too() -> None:
    error = unreachable(WAYS["call"], "refused", target=NOWHERE)
    assert isinstance(error, grpc.Call)
    assert list(error.trailing_metadata() or ()) == []


def test_a_future_hands_itself_to_its_callback(peer: FakeServer) -> None:
    done: list[Any] = []
    with connect(peer.address) as caseload:
        future = caseload.therapists.GetTherapist.future(GET)
        future.add_done_callback(done.append)
        future.result()
        eventually(lambda: done)
    assert done == [future]
