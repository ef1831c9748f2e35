"""Permissions of every method of every service on the server."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1.resources_pb2 import Therapist
from caseload_server.observability.access_log import AccessLog
from caseload_server.rpc.admission import Admission
from caseload_server.rpc.executors import FairExecutor
from caseload_server.rpc.fair_queue import FairQueue
from caseload_server.rpc.pipeline import MethodExecutors, PipelineServer
from caseload_server.rpc.server import CaseloadServer
from caseload_server.security import auth
from caseload_server.security.auth import PUBLIC, Auth
from caseload_server.security.principal import PERMISSIONS
from google.protobuf import descriptor_pb2, descriptor_pool

from tests.security.server_fixture import KeysFile, Metadata, bearer, serving
from tests.support.api_driver import READS, RPCS
from tests.support.servers import refusal
from tests.support.waiting import HUNG_SECONDS

FOREIGN = {
    "/grpc.health.v1.Health/Check": PUBLIC,
    "/grpc.health.v1.Health/List": PUBLIC,
    "/grpc.health.v1.Health/Watch": PUBLIC,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": ("read",),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ("read",),
}
READ_AND_AUDIT = {"ListTherapistVersions", "ListPatientVersions", "ListAssignmentVersions"}
Tokens = dict[tuple[str, ...], str]


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    """For each set of permissions but the full one, the token of a caller with only these."""
    return {}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tokens: Tokens) -> Iterator[CaseloadServer]:
    folder = tmp_path_factory.mktemp("permissions")
    keys_file = KeysFile(folder / "keys")
    some = [each for size in (1, 2) for each in itertools.combinations(PERMISSIONS, size)]
    tokens |= {each: keys_file.add(f"may-{'-'.join(each)}", *each) for each in some}
    with serving(folder, keys_file=keys_file.path) as started:
        yield started


def registered(server: CaseloadServer) -> list[str]:
    """Every method of the server, by full name."""
    of_grpcio: Any = server._parts.grpc_server
    state = of_grpcio._state
    assert state.generic_handlers == []
    return sorted(state.registered_method_handlers)


def needed(method: str) -> tuple[str, ...]:
    """The permissions that the contract requires."""
    if method in FOREIGN:
        return FOREIGN[method]
    service, _, name = method.removeprefix("/caseload.v1.").partition("/")
    if service == "ChangeService":
        return ("audit",)
    if name in READ_AND_AUDIT:
        return ("read", "audit")
    return ("read",) if name in READS else ("write",)


def outcome(server: CaseloadServer, method: str, metadata: Metadata, data: bytes = b"") -> str:
    """The error reason, or an empty string. A stream is cancelled after its first message."""
    with grpc.insecure_channel(server.address) as channel:
        is_reflection = "ServerReflection" in method
        make: Any = channel.stream_stream if is_reflection else channel.unary_stream
        stream = make(method)(iter([data]) if is_reflection else data, metadata=metadata, timeout=HUNG_SECONDS)
        try:
            next(stream)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.INVALID_ARGUMENT and "Missing" in str(error.details()):
                return ""
            return refusal(error).reason
        except StopIteration:
            pass
        finally:
            stream.cancel()
    return ""


def test_the_server_has_exactly_the_methods_of_the_contract_health_and_reflection(server: CaseloadServer) -> None:
    ours = {f"/{rpc.containing_service.full_name}/{name}" for name, rpc in RPCS.items()}
    assert set(registered(server)) == ours | FOREIGN.keys()


def test_every_method_except_health_rejects_an_unknown_caller(server: CaseloadServer) -> None:
    for method in registered(server):
        for metadata in ((), bearer("unknown")):
            refused = outcome(server, method, metadata) == "UNAUTHENTICATED"
            assert refused == (needed(method) != PUBLIC), method


def test_every_method_requires_exactly_its_own_permissions(server: CaseloadServer, tokens: Tokens) -> None:
    for method in registered(server):
        found = {one: outcome(server, method, bearer(token)) for one, token in tokens.items()}
        denied = {one for one, reason in found.items() if reason == "PERMISSION_DENIED"}
        assert denied == {one for one in tokens if not set(needed(method)) <= set(one)}, method


@pytest.mark.parametrize(
    ("method", "permissions", "missing"),
    [
        ("PatientService/DeletePatient", ("read",), "write"),
        ("PatientService/ListPatientVersions", ("read",), "audit"),
        ("PatientService/ListPatientVersions", ("write", "audit"), "read"),
    ],
)
def test_a_denied_call_names_the_missing_permission(
    server: CaseloadServer, tokens: Tokens, method: str, permissions: tuple[str, ...], missing: str
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        denied: Any = channel.unary_unary(f"/caseload.v1.{method}")
        with pytest.raises(grpc.RpcError) as caught:
            denied(b"", metadata=bearer(tokens[permissions]))
    found = refusal(caught.value)
    assert (found.code, found.metadata) == (grpc.StatusCode.PERMISSION_DENIED, {"permission": missing})


def test_the_permission_is_checked_before_the_request(server: CaseloadServer, tokens: Tokens) -> None:
    garbage, delete = b"\xff\xff", "/caseload.v1.PatientService/DeletePatient"
    assert outcome(server, delete, (), garbage) == "UNAUTHENTICATED"
    assert outcome(server, delete, bearer(tokens["audit",]), garbage) == "PERMISSION_DENIED"
    assert outcome(server, delete, bearer(tokens["write",]), garbage) == "INVALID_FIELD"


def test_the_permission_is_checked_before_a_replay(tmp_path: Path) -> None:
    """A caller whose permission was revoked cannot replay an earlier response."""
    keys_file = KeysFile(tmp_path / "keys")
    token = keys_file.add("billing", "write")
    with serving(tmp_path, keys_file=keys_file.path, threads=2) as server:
        create, body = "/caseload.v1.TherapistService/CreateTherapist", creation()
        assert outcome(server, create, bearer(token), body) == ""
        assert outcome(server, create, bearer(token), body) == ""
    keys_file.replace(keys_file.path.read_text().replace(" write ", " read "))
    with serving(tmp_path, keys_file=keys_file.path, threads=2) as server:
        assert outcome(server, create, bearer(token), body) == "PERMISSION_DENIED"


def creation() -> bytes:
    request_id = "0190a3c4-0000-7000-8000-000000000001"
    return pb.CreateTherapistRequest(therapist=Therapist(display_name="A"), request_id=request_id).SerializeToString()


def test_a_method_without_a_rule_is_denied_to_every_caller() -> None:
    """If a new service has no rule, not even `local` may call it."""
    file = descriptor_pb2.FileDescriptorProto(name="planted.proto", package="planted", syntax="proto3")
    file.message_type.add(name="Empty")
    file.service.add(name="Planted").method.add(name="Do", input_type=".planted.Empty", output_type=".planted.Empty")
    descriptor_pool.Default().Add(file)
    called: list[object] = []

    class Planted:
        def Do(self, request: object, _context: grpc.ServicerContext) -> object:
            called.append(request)
            return request

    admission = Admission(share=1)
    threads = FairExecutor(admission, "planted", FairQueue(1, 1, HUNG_SECONDS, share=1))
    bare = grpc.server(threads)
    guarded = PipelineServer(bare, Auth(None), AccessLog(sys.stderr), MethodExecutors.same(threads, threads), admission)
    guarded.add_service("planted.Planted", Planted())
    port = bare.add_insecure_port("127.0.0.1:0")
    bare.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask: Any = channel.unary_unary("/planted.Planted/Do")
        with pytest.raises(grpc.RpcError) as caught:
            ask(b"", timeout=HUNG_SECONDS)
    bare.stop(None).wait()
    threads.shutdown()
    admission.close()
    assert refusal(caught.value).metadata == {"permission": "nobody"}
    assert called == []


def test_the_test_detects_a_method_without_a_permission_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_SERVICE_PERMISSIONS", {"caseload.v1.ChangeService": PUBLIC})
    with serving(tmp_path, keys_file=KeysFile(tmp_path / "keys").path) as server:
        assert outcome(server, "/caseload.v1.ChangeService/ListChanges", ()) == ""
