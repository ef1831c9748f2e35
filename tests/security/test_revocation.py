"""A caller that may no longer call loses its open streams too."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from caseload.v1 import change_service_pb2 as change_pb
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.resources_pb2 import Therapist
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from caseload_server.api import watches
from caseload_server.domain import limits
from caseload_server.rpc.server import CaseloadServer
from caseload_server.security import file_reload
from caseload_server.security.auth import Auth
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.security.server_fixture import KeysFile, bearer, serving
from tests.security.tls_files import Files
from tests.support.servers import Refusal, refusal
from tests.support.waiting import HUNG_SECONDS, NEVER_SECONDS, eventually


@pytest.fixture
def server(tmp_path: Path, keys_file: KeysFile, monkeypatch: pytest.MonkeyPatch) -> Iterator[CaseloadServer]:
    """A server that looks at its keys file at each check, and whose quiet watches send nothing."""
    monkeypatch.setattr(file_reload, "CHECK_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", NEVER_SECONDS)
    with serving(tmp_path, keys_file=keys_file.path) as started:
        yield started


@pytest.fixture
def channel(server: CaseloadServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def open_watch(channel: grpc.Channel, token: str | None) -> Any:
    """Opens a watch and reads its first message."""
    metadata = bearer(token) if token else None
    stream: Any = ChangeServiceStub(channel).WatchChanges(
        change_pb.WatchChangesRequest(), metadata=metadata, timeout=HUNG_SECONDS
    )
    next(stream)
    return stream


def end_of(stream: Any) -> Refusal:
    """Reads the next message, which must be the error that ends the stream."""
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    return refusal(caught.value)


def rewritten(keys_file: KeysFile, old: str, new: str) -> None:
    content = keys_file.path.read_text()
    assert old in content
    keys_file.replace(content.replace(old, new))


def test_a_quiet_watch_ends_when_the_key_is_removed(channel: grpc.Channel, keys_file: KeysFile) -> None:
    stays, goes = keys_file.add("stays"), keys_file.add("goes")
    watching, revoked = open_watch(channel, stays), open_watch(channel, goes)
    rewritten(keys_file, keys_file.path.read_text().splitlines()[1], "")
    found = end_of(revoked)
    assert (found.code, found.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    create(channel, stays)
    assert len(next(watching).change_sets) == 1


def create(channel: grpc.Channel, token: str) -> None:
    request = pb.CreateTherapistRequest(therapist=Therapist(display_name="A"))
    TherapistServiceStub(channel).CreateTherapist(request, metadata=bearer(token))


def test_a_quiet_watch_ends_when_its_permission_is_removed(channel: grpc.Channel, keys_file: KeysFile) -> None:
    stream = open_watch(channel, keys_file.add("auditor", "read", "audit"))
    rewritten(keys_file, "read,audit", "read")
    found = end_of(stream)
    assert (found.code, found.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert found.metadata == {"permission": "audit"}


def test_a_watch_ends_when_its_key_is_given_to_another_caller(channel: grpc.Channel, keys_file: KeysFile) -> None:
    stream = open_watch(channel, keys_file.add("first"))
    rewritten(keys_file, "first", "second")
    assert end_of(stream).reason == "UNAUTHENTICATED"


def test_a_watch_ends_when_the_key_of_its_call_is_rotated_out(channel: grpc.Channel, keys_file: KeysFile) -> None:
    old, new = keys_file.add("billing"), keys_file.add("billing")
    by_old, by_new = open_watch(channel, old), open_watch(channel, new)
    keys_file.replace(keys_file.path.read_text().splitlines()[1] + "\n")
    assert end_of(by_old).reason == "UNAUTHENTICATED"
    create(channel, new)
    assert len(next(by_new).change_sets) == 1


def test_no_message_is_sent_after_a_revocation(
    channel: grpc.Channel, keys_file: KeysFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nothing has woken the watch since."""
    monkeypatch.setattr(watches, "_AUTHORIZATION_CHECK_SECONDS", NEVER_SECONDS)
    stays, goes = keys_file.add("stays"), keys_file.add("goes")
    with keeping_quiet(channel, stays):
        stream = open_watch(channel, goes)
        rewritten(keys_file, keys_file.path.read_text().splitlines()[1], "")
        create(channel, stays)
        assert end_of(stream).reason == "UNAUTHENTICATED"


@contextmanager
def keeping_quiet(channel: grpc.Channel, token: str) -> Iterator[None]:
    """Opens a watch, at which the polling thread looks for the last time."""
    first = open_watch(channel, token)
    yield
    first.cancel()


def test_a_heartbeat_is_not_sent_after_a_revocation(
    channel: grpc.Channel, keys_file: KeysFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "_AUTHORIZATION_CHECK_SECONDS", NEVER_SECONDS)
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.2)
    token = keys_file.add("goes")
    stream = open_watch(channel, token)
    next(stream)
    keys_file.replace("")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)  # heartbeats from before the change may still arrive
    assert refusal(caught.value).reason == "UNAUTHENTICATED"


def test_an_ended_watch_frees_its_slot(server: CaseloadServer, channel: grpc.Channel, keys_file: KeysFile) -> None:
    stream = open_watch(channel, keys_file.add("goes"))
    keys_file.replace("")
    assert end_of(stream).reason == "UNAUTHENTICATED"
    eventually(lambda: server._watches.count() == 0)


def test_reflection_answers_nothing_after_a_revocation(channel: grpc.Channel, keys_file: KeysFile) -> None:
    token = keys_file.add("goes")
    revoked = False

    def questions() -> Iterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        eventually(lambda: revoked)
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub: Any = reflection_pb2_grpc.ServerReflectionStub
    stream = stub(channel).ServerReflectionInfo(questions(), metadata=bearer(token), timeout=HUNG_SECONDS)
    next(stream)
    keys_file.replace("")
    revoked = True
    assert end_of(stream).reason == "UNAUTHENTICATED"


@pytest.mark.slow
def test_a_watch_ends_when_its_client_certificate_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", NEVER_SECONDS)
    files = Files.create(tmp_path)
    files.keys.append("dns:short.example read,write,audit")
    tls: dict[str, Any] = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.client_ca}
    with (
        serving(tmp_path, keys_file=files.keys.path, **tls) as server,
        watching_briefly(server, files.authority) as (channel, stream),
    ):
        assert end_of(stream).reason == "UNAUTHENTICATED"
        with pytest.raises(grpc.RpcError) as caught:
            TherapistServiceStub(channel).GetTherapist(pb.GetTherapistRequest(therapist_id="t1"))
        assert refusal(caught.value).reason == "UNAUTHENTICATED"


@contextmanager
def watching_briefly(server: CaseloadServer, authority: trustme.CA) -> Iterator[tuple[grpc.Channel, Any]]:
    """Opens a watch with a certificate that expires in 2 seconds, or later if this machine is slower."""
    for seconds in (2, 8, 40):
        client = authority.issue_cert("short.example", not_after=datetime.now(UTC) + timedelta(seconds=seconds))
        chain = b"".join(part.bytes() for part in client.cert_chain_pems)
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), client.private_key_pem.bytes(), chain)
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(server.address, credentials, own_connection) as channel:
            try:
                stream = open_watch(channel, None)
            except grpc.RpcError:
                continue  # the certificate expired before the watch was open
            yield channel, stream
            return
    raise AssertionError("no watch was opened in time")


def test_an_open_watch_is_not_authenticated_again_while_the_keys_stay(
    server: CaseloadServer, channel: grpc.Channel, keys_file: KeysFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = keys_file.add("billing")
    stream = open_watch(channel, token)
    checks: list[int] = []
    authenticate = Auth.authenticate

    def counted(auth: Auth, context: grpc.ServicerContext) -> Any:
        checks.append(1)
        return authenticate(auth, context)

    monkeypatch.setattr(Auth, "authenticate", counted)
    for _ in range(5):
        server.store.wait_for_commit()
        server._watches._next_check = -math.inf
    assert checks == []
    keys_file.append("")
    keys_file.append("dns:another read")
    eventually(lambda: checks)
    stream.cancel()
