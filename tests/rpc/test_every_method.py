"""Every method of every service of the contract has a handler, and every registered one authenticates its caller."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload_server.api.assignment_service import AssignmentServicer
from caseload_server.api.change_service import ChangeServicer
from caseload_server.api.patient_service import PatientServicer
from caseload_server.api.therapist_service import TherapistServicer
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.api.sample_values import METHODS
from tests.rpc.reflection_client import listed_services
from tests.security.server_fixture import KeysFile, Metadata, bearer, serving
from tests.support.servers import Client
from tests.support.waiting import HUNG_SECONDS

HEALTH = "grpc.health.v1.Health"
HEALTH_METHODS = health_pb2.DESCRIPTOR.services_by_name["Health"].methods
"""List is missing in the oldest supported library."""


@contextmanager
def authenticating(folder: Path) -> Iterator[tuple[grpc.Channel, Metadata]]:
    """A server that authenticates callers. Yields a channel, and the credentials of one with all permissions."""
    keys = KeysFile(folder / "keys")
    credentials = bearer(keys.add("all"))
    with serving(folder, keys_file=keys.path) as server, grpc.insecure_channel(server.address) as channel:
        yield channel, credentials


def registered_methods(channel: grpc.Channel, credentials: Metadata) -> list[MethodDescriptor]:
    """The methods of all services that the server's reflection lists."""
    pool: Any = descriptor_pool.Default()
    services: list[Any] = [pool.FindServiceByName(name) for name in listed_services(channel, credentials)]
    return [method for service in services for method in service.methods]


def code_of(channel: grpc.Channel, method: MethodDescriptor, data: bytes, metadata: Metadata) -> str:
    """Calls any kind of method; returns the name of the status code. A stream ends after its first message."""
    kinds: Any = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }
    make = kinds[method.client_streaming, method.server_streaming]
    send = make(f"/{method.containing_service.full_name}/{method.name}")
    try:
        answer = send(iter([data]) if method.client_streaming else data, metadata=metadata, timeout=HUNG_SECONDS)
        if method.server_streaming:
            next(answer)
            answer.cancel()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize("servicer", [TherapistServicer, PatientServicer, AssignmentServicer, ChangeServicer])
def test_a_server_without_a_handler_for_a_method_does_not_start(
    servicer: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generated base class still has the method, which would answer UNIMPLEMENTED."""
    method = next(name for name in vars(servicer) if name[0].isupper())
    monkeypatch.delattr(servicer, method)
    assert hasattr(servicer, method)
    with (
        pytest.raises(NotImplementedError, match=rf"^caseload\.v1\.\w+Service\.{method} has no handler$"),
        serving(tmp_path),
    ):
        pass


def test_every_service_of_the_contract_is_registered(tmp_path: Path) -> None:
    with authenticating(tmp_path) as (channel, credentials):
        registered = {method.full_name for method in registered_methods(channel, credentials)}
    assert {method.full_name for method in METHODS} <= registered


def test_no_method_of_any_service_fails_with_and_without_credentials(tmp_path: Path) -> None:
    with authenticating(tmp_path) as (channel, credentials), capture_logs() as events:
        methods = registered_methods(channel, credentials)
        names = {f"{method.containing_service.full_name}/{method.name}": method for method in methods}
        assert {f"{HEALTH}/{method.name}" for method in HEALTH_METHODS} < names.keys()
        anonymous = {name: code_of(channel, method, b"", ()) for name, method in names.items()}
        known = {name: code_of(channel, method, b"", credentials) for name, method in names.items()}
        damaged = {name: code_of(channel, method, b"\xff", credentials) for name, method in names.items()}
    expected = {name: "OK" if name.startswith(HEALTH) else "UNAUTHENTICATED" for name in names}
    assert anonymous == expected
    assert set(known.values()) <= {"OK", "INVALID_ARGUMENT"}
    assert set(damaged.values()) == {"INVALID_ARGUMENT"}
    assert [event for event in events if event["log_level"] == "error"] == []


def test_health_lists_the_status_of_every_service(client: Client) -> None:
    if "List" not in {method.name for method in HEALTH_METHODS}:
        return
    stub: Any = health_pb2_grpc.HealthStub(client.channel)
    messages: Any = health_pb2  # its type stubs lack the messages of List
    listed = stub.List(messages.HealthListRequest()).statuses
    checked = {name: stub.Check(health_pb2.HealthCheckRequest(service=name)) for name in listed}
    assert dict(listed) == checked
    assert len(listed) == 5
