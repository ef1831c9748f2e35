"""connect(): the defaults of each call, and who may see its key."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.client import Caseload, aio, connect, error_info
from caseload.v1 import change_service_pb2, patient_service_pb2, resources_pb2, therapist_service_pb2
from caseload_server.rpc.server import CaseloadServer
from google.protobuf.message_factory import GetMessageClass

from tests.client.aio.run import run
from tests.client.fake_server import FakeServer
from tests.client.pem_files import PemFiles
from tests.security.server_fixture import KeysFile, serving
from tests.support.api_driver import READS, RPCS
from tests.support.waiting import HUNG_SECONDS, eventually

GET = therapist_service_pb2.GetTherapistRequest(therapist_id="t1")
CREATE = patient_service_pb2.CreatePatientRequest(patient=resources_pb2.Patient(display_name="Bob Ray"))
TOKEN = "Canary-Zq9"


def method(caseload: Caseload, rpc: str) -> Any:
    service = RPCS[rpc].containing_service.name.removesuffix("Service").lower()
    return getattr(getattr(caseload, f"{service}s"), rpc)


def sent(peer: FakeServer, rpc: str, **fields: Any) -> Any:
    """The request with these fields as it reaches the server."""
    request = GetMessageClass(RPCS[rpc].input_type)
    given = request(**fields)
    before = given.SerializeToString()
    with connect(peer.answer_with().address) as caseload:
        answer = method(caseload, rpc)(given)
        if rpc == "WatchChanges":
            list(answer)
    assert given.SerializeToString() == before
    [attempt] = peer.attempts
    return request.FromString(attempt.data)


@pytest.mark.parametrize("rpc", sorted(set(RPCS) - READS))
def test_each_write_without_a_request_id_gets_one_and_the_callers_message_is_not_changed(
    peer: FakeServer, rpc: str
) -> None:
    ids = {sent(peer, rpc, validate_only=True).request_id for _ in range(2)}
    assert [len(one) for one in ids] == [36, 36]
    assert sent(peer, rpc, request_id="mine").request_id == "mine"


@pytest.mark.parametrize("rpc", sorted(READS))
def test_reads_are_sent_unchanged(peer: FakeServer, rpc: str) -> None:
    assert sent(peer, rpc).ByteSize() == 0


def test_each_way_to_call_has_the_deadline_and_the_key(peer: FakeServer) -> None:
    with connect(peer.address, key=TOKEN, timeout=700) as caseload:
        get = caseload.therapists.GetTherapist
        get(GET)
        get(GET, metadata=(("x-trace", "1"),))
        get.with_call(GET)
        get.future(GET).result()
        get(GET, timeout=300)
        get(GET, 300)
        list(caseload.changes.WatchChanges(change_service_pb2.WatchChangesRequest()))
    *left, watch = [attempt.seconds_left for attempt in peer.attempts]
    assert left == [pytest.approx(700, abs=HUNG_SECONDS)] * 4 + [pytest.approx(300, abs=HUNG_SECONDS)] * 2
    assert watch > 10**6
    assert [attempt.metadata["authorization"] for attempt in peer.attempts] == [f"Bearer {TOKEN}"] * 7
    assert peer.attempts[1].metadata["x-trace"] == "1"


def test_each_client_has_a_connection_of_its_own_because_shared_ones_crash_in_the_library(peer: FakeServer) -> None:
    async def get() -> None:
        async with aio.connect(peer.address) as one, aio.connect(peer.address) as another:
            await one.therapists.GetTherapist(GET)
            await another.therapists.GetTherapist(GET)

    with connect(peer.address) as one, connect(peer.address) as another:
        one.therapists.GetTherapist(GET)
        another.therapists.GetTherapist(GET)
        run(get())
    assert len({attempt.peer for attempt in peer.attempts}) == 4


def test_without_a_key_none_is_sent(peer: FakeServer) -> None:
    with connect(peer.address) as caseload:
        caseload.therapists.GetTherapist(GET)
    assert "authorization" not in peer.attempts[0].metadata


@pytest.mark.slow
@pytest.mark.parametrize(
    ("waits", "seconds", "code"),
    [(None, 2, grpc.StatusCode.DEADLINE_EXCEEDED), (False, HUNG_SECONDS, grpc.StatusCode.UNAVAILABLE)],
)
def test_a_call_waits_for_a_server_unless_wait_for_ready_is_false(
    waits: bool | None,  # noqa: FBT001 - a parameter of the test
    seconds: float,
    code: grpc.StatusCode,
) -> None:
    with connect("127.0.0.1:1") as caseload, pytest.raises(grpc.RpcError) as caught:
        caseload.therapists.GetTherapist(GET, timeout=seconds, wait_for_ready=waits)
    assert caught.value.code() == code
    assert waits is None or "refused" in str(caught.value.details())


# --- where a key may go


REMOTE = (
    *("caseload.example.org:50051", "dns:///caseload.example.org:50051", "ipv4:127.0.0.1:1,192.0.2.1:1", "192.0.2.1:1"),
    *(
        "127.0.0.1.example.org:1",
        "localhost.example.org:1",
        "[2001:db8::1]:1",
        "0.0.0.0:1",
        "dns://192.0.2.1/localhost:1",
    ),
    *("xds:///localhost:1", "passthrough:127.0.0.1:1", ""),
)
LOCAL = (
    *("127.0.0.1:1", "localhost:1", "dns:///localhost:1", "dns:127.0.0.9:1", "[::1]:1", "ipv6:[::1]:1,[::1]:2"),
    *("ipv4:127.0.0.1:1,127.0.0.1:2", "localhost"),
)


@pytest.mark.parametrize("target", REMOTE)
def test_a_key_is_not_sent_in_plain_text_beyond_loopback(target: str) -> None:
    with pytest.raises(ValueError, match=r"^key: would be sent in plain text; it needs TLS$"):
        connect(target, key=TOKEN, allow_insecure=True)


@pytest.mark.parametrize("target", LOCAL)
def test_a_key_may_be_sent_in_plain_text_on_loopback(target: str) -> None:
    connect(target, key=TOKEN).close()


@pytest.mark.parametrize("key", ["", f"{TOKEN}\n", f"{TOKEN} x", f"{TOKEN}\u00e9", f"\x00{TOKEN}"])
def test_an_invalid_key_is_rejected_and_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match=r"^key: must be visible ASCII characters$"):
        connect("127.0.0.1:1", key=key)


def test_plain_text_bypasses_the_proxy_of_the_environment(peer: FakeServer) -> None:
    code = f"""if True:
        from caseload.client import connect
        from caseload.v1.therapist_service_pb2 import GetTherapistRequest
        connect("{peer.address}", key="{TOKEN}").therapists.GetTherapist(GetTherapistRequest())"""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.1)
        environment = {**os.environ, "grpc_proxy": f"http://127.0.0.1:{proxy.getsockname()[1]}", "no_grpc_proxy": ""}
        subprocess.run([sys.executable, "-c", code], env=environment, timeout=HUNG_SECONDS, check=True)
        with pytest.raises(TimeoutError):
            proxy.accept()
    assert len(peer.attempts) == 1


# --- TLS, with a server that requires it


@pytest.fixture
def ours(tmp_path: Path) -> PemFiles:
    return PemFiles(tmp_path, "reports")


@pytest.fixture
def keys(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys")


@pytest.fixture
def token(keys: KeysFile) -> str:
    return keys.add("billing", "write", "audit")


@pytest.fixture
def secure(tmp_path: Path, ours: PemFiles, keys: KeysFile, token: str) -> Iterator[CaseloadServer]:  # noqa: ARG001 - read at the start
    """A server that requires a client certificate."""
    settings = {"tls_cert": ours.cert, "tls_key": ours.key, "tls_client_ca": ours.ca, "keys_file": keys.path}
    keys.append("cn:reports write,audit")
    with serving(tmp_path, **settings) as server:
        yield server


@pytest.mark.parametrize("name", ["cn:reports", "billing"])
def test_a_certificate_or_a_key_names_the_caller(secure: CaseloadServer, ours: PemFiles, token: str, name: str) -> None:
    key = token if name == "billing" else None
    with connect(secure.address, key=key, tls_ca=ours.ca, tls_cert=ours.cert, tls_key=ours.key) as caseload:
        caseload.patients.CreatePatient(CREATE)
        changes = caseload.changes.ListChanges(change_service_pb2.ListChangesRequest())
    assert [one.actor for one in changes.change_sets] == [name]


@pytest.mark.slow
def test_no_request_reaches_a_server_of_another_authority(
    secure: CaseloadServer, tmp_path: Path, ours: PemFiles
) -> None:
    other = PemFiles(tmp_path, "other")
    client = connect(secure.address, key=TOKEN, tls_ca=other.ca, tls_cert=ours.cert, tls_key=ours.key)

    def refused() -> str:
        with pytest.raises(grpc.RpcError) as caught:
            client.patients.CreatePatient(CREATE, timeout=1)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert error_info(caught.value).reason == ""
        return str(caught.value.details())

    with client:
        eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in refused())  # a handshake can last longer than one deadline


def test_tls_ca_enables_tls_on_loopback_too(tmp_path: Path, peer: FakeServer) -> None:
    """No request reaches a server without TLS."""
    with connect(peer.address, tls_ca=PemFiles(tmp_path, "any").ca) as caseload, pytest.raises(grpc.RpcError):
        caseload.patients.CreatePatient(CREATE, timeout=1)
    assert peer.attempts == []


@pytest.mark.parametrize("given", [{"tls_cert": "cert.pem"}, {"tls_key": "key.pem"}])
def test_a_certificate_and_its_key_must_be_given_together(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="tls_cert and tls_key"):
        connect("127.0.0.1:1", **given)  # type: ignore[arg-type]  # each is a file


# --- the application's own interceptors and options


class TimeoutRecorder(grpc.UnaryUnaryClientInterceptor):
    """Records the timeout of each call."""

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self.timeouts.append(client_call_details.timeout)
        return continuation(client_call_details, request)


def test_interceptors_and_options_reach_the_channel(peer: FakeServer) -> None:
    recorder = TimeoutRecorder()
    with connect(peer.address, interceptors=[recorder], options=[("grpc.primary_user_agent", "billing/1")]) as caseload:
        caseload.therapists.GetTherapist(GET)
    assert recorder.timeouts == [10.0]
    assert peer.attempts[0].metadata["user-agent"].startswith("billing/1 ")


class RetryingInterceptor(grpc.UnaryUnaryClientInterceptor):
    """Makes each call twice, as an interceptor that retries does."""

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        continuation(client_call_details, request).result()
        return continuation(client_call_details, request)


WAYS: list[Any] = [lambda call: call, lambda call: call.with_call, lambda call: call.future]


@pytest.mark.parametrize("way", WAYS)
def test_a_call_on_a_closed_client_is_a_value_error_with_interceptors_too(peer: FakeServer, way: Any) -> None:
    for interceptors in ([], [TimeoutRecorder()]):
        with connect(peer.address, interceptors=interceptors) as caseload:
            pass
        with pytest.raises(ValueError, match="closed"):
            way(caseload.therapists.GetTherapist)(GET)
        with pytest.raises(ValueError, match="closed"):
            caseload.changes.WatchChanges(change_service_pb2.WatchChangesRequest())


@pytest.mark.parametrize("way", WAYS)
def test_an_interceptor_that_retries_sends_the_same_request_id(peer: FakeServer, way: Any) -> None:
    request = patient_service_pb2.CreatePatientRequest()
    with connect(peer.address, interceptors=[RetryingInterceptor()]) as caseload:
        answer = way(caseload.patients.CreatePatient)(request)
        if isinstance(answer, grpc.Future):
            answer.result()
    first, second = (request.FromString(attempt.data).request_id for attempt in peer.attempts)
    assert first == second != ""
    assert request.request_id == ""


@pytest.mark.slow
def test_an_option_of_the_application_takes_precedence(peer: FakeServer) -> None:
    caseload = connect(peer.address, options=[("grpc.max_send_message_length", 50)])
    with caseload, pytest.raises(grpc.RpcError) as caught:
        caseload.therapists.GetTherapist(therapist_service_pb2.GetTherapistRequest(therapist_id="t" * 60))
    assert "larger than max" in str(caught.value.details())


def test_all_four_services_can_be_called(server: CaseloadServer) -> None:
    with connect(server.address) as caseload:
        made = caseload.patients.CreatePatient(CREATE)
        assert caseload.changes.ListChanges(change_service_pb2.ListChangesRequest()).head_revision == made.revision
        for rpc in ("ListTherapists", "ListPatients", "ListAssignments"):
            method(caseload, rpc)(GetMessageClass(RPCS[rpc].input_type)())
