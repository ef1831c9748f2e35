"""Reflection, as grpcurl and other tools use it to find the methods and to explain them."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from caseload.v1 import error_reason_pb2
from google.api import field_behavior_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc import StatusCode
from grpc_reflection.v1alpha.reflection_pb2 import ExtensionRequest, ServerReflectionRequest, ServerReflectionResponse

from tests.api.sample_values import METHODS
from tests.docs.doc_blocks import search_path
from tests.rpc.reflection_client import VERSIONS, ask, listed_services
from tests.security.server_fixture import KeysFile, serving
from tests.support.servers import Client
from tests.support.waiting import HUNG_SECONDS

every_version = pytest.mark.parametrize("version", VERSIONS)
SYMBOLS = {
    "caseload.v1.TherapistService": "therapist_service.proto",
    "caseload.v1.TherapistService.GetTherapist": "therapist_service.proto",
    "caseload.v1.GetTherapistRequest": "therapist_service.proto",
    "caseload.v1.Therapist.display_name": "resources.proto",
    "caseload.v1.Change.resource": "change_service.proto",
    "caseload.v1.ErrorReason": "error_reason.proto",
    "caseload.v1.ERROR_REASON_INVALID_FIELD": "error_reason.proto",
    "google.api.field_behavior": "field_behavior.proto",
    "google.rpc.ErrorInfo": "error_details.proto",
    "grpc.health.v1.Health.Check": "health.proto",
    "grpc.health.v1.HealthCheckResponse.ServingStatus": "health.proto",
    "grpc.reflection.v1.ServerReflection.ServerReflectionInfo": "reflection.proto",
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": "reflection.proto",
}
"""Symbols of each kind, with the file that declares them."""
SERVICES = {method.containing_service.full_name for method in METHODS}


def files_of(answer: ServerReflectionResponse) -> list[FileDescriptorProto]:
    assert not answer.HasField("error_response"), answer.error_response
    return [FileDescriptorProto.FromString(one) for one in answer.file_descriptor_response.file_descriptor_proto]


def files_with(client: Client, symbol: str, version: str = "v1") -> list[FileDescriptorProto]:
    """The file that declares a symbol, and then those that it needs."""
    [answer] = ask(client.channel, ServerReflectionRequest(file_containing_symbol=symbol), version=version)
    return files_of(answer)


@every_version
def test_the_services_are_listed(client: Client, version: str) -> None:
    reflections = {f"grpc.reflection.{one}.ServerReflection" for one in VERSIONS}
    assert set(listed_services(client.channel, version=version)) == {*SERVICES, "grpc.health.v1.Health", *reflections}


@every_version
def test_a_symbol_of_any_kind_is_found_with_all_that_its_file_needs(client: Client, version: str) -> None:
    for symbol, file in SYMBOLS.items():
        files = files_with(client, symbol, version)
        assert files[0].name.endswith(f"/{file}"), symbol
        names = {one.name for one in files}
        assert [one.name for one in files if not names.issuperset(one.dependency)] == []


def test_every_method_and_every_reason_has_its_comment(client: Client) -> None:
    reasons = {f"caseload.v1.{name}" for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118 - not a dict
    symbols = reasons | {method.full_name for method in METHODS}
    files = {symbol: files_with(client, symbol)[0] for symbol in symbols}
    assert [symbol for symbol, file in files.items() if not comment(file, symbol.rpartition(".")[2])] == []


def comment(file: FileDescriptorProto, name: str) -> str:
    """The comment of a method or an enum value of a file."""
    parts: dict[tuple[int, ...], Any] = {(6, index, 2): service.method for index, service in enumerate(file.service)}
    parts |= {(5, index, 2): enum.value for index, enum in enumerate(file.enum_type)}
    [path] = [(*path, index) for path, named in parts.items() for index, one in enumerate(named) if one.name == name]
    [found] = [one.leading_comments for one in file.source_code_info.location if tuple(one.path) == path]
    return found


@every_version
def test_an_unknown_symbol_is_not_found_and_not_repeated(client: Client, version: str) -> None:
    symbols = ["", "caseload.v1", "caseload.v1.Nothing", "caseload.v1.TherapistService.Nothing"]
    requests = [ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
    answers = ask(client.channel, *requests, version=version)
    assert [answer.original_request.file_containing_symbol for answer in answers] == symbols
    assert {answer.error_response.error_code for answer in answers} == {StatusCode.NOT_FOUND.value[0]}
    assert not any("Nothing" in answer.error_response.error_message for answer in answers)


@every_version
def test_files_and_extensions_are_found(client: Client, version: str) -> None:
    options, behavior = "google.protobuf.FieldOptions", field_behavior_pb2.DESCRIPTOR.name
    extension = ExtensionRequest(
        containing_type=options, extension_number=field_behavior_pb2.FIELD_BEHAVIOR_FIELD_NUMBER
    )
    named, extending, numbers, without, unknown, nothing = ask(
        client.channel,
        ServerReflectionRequest(file_by_filename=behavior),
        ServerReflectionRequest(file_containing_extension=extension),
        ServerReflectionRequest(all_extension_numbers_of_type=options),
        ServerReflectionRequest(all_extension_numbers_of_type="caseload.v1.Therapist"),
        ServerReflectionRequest(all_extension_numbers_of_type="caseload.v1.Nothing"),
        ServerReflectionRequest(host="one"),
        version=version,
    )
    assert [files_of(answer)[0].name for answer in (named, extending)] == [behavior, behavior]
    assert extension.extension_number in numbers.all_extension_numbers_response.extension_number
    assert without.all_extension_numbers_response.base_type_name == "caseload.v1.Therapist"
    assert unknown.error_response.error_code == StatusCode.NOT_FOUND.value[0]
    assert (nothing.error_response.error_code, nothing.valid_host) == (StatusCode.INVALID_ARGUMENT.value[0], "one")


@pytest.fixture
def grpcurl() -> Callable[..., str]:
    """Runs grpcurl, and returns what it prints."""
    program = shutil.which("grpcurl", path=search_path())
    if program is None:
        pytest.skip("needs grpcurl: make grpcurl, which needs Go")

    def run(*arguments: str) -> str:
        command = [program, "-plaintext", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HUNG_SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_grpcurl_describes_a_method_with_its_comment(client: Client, grpcurl: Callable[..., str]) -> None:
    shown = grpcurl(client.address, "describe", "caseload.v1.TherapistService.GetTherapist")
    assert "// Gets one therapist, live or soft-deleted." in shown
    assert "// - THERAPIST_NOT_FOUND: the id never existed, or was purged." in shown


@pytest.mark.slow
def test_grpcurl_describes_the_reasons_of_errors(client: Client, grpcurl: Callable[..., str]) -> None:
    shown = grpcurl(client.address, "describe", "caseload.v1.ErrorReason")
    assert "// INVALID_ARGUMENT. A field is missing or malformed." in shown


@pytest.mark.slow
def test_health_can_be_asked_with_a_saved_descriptor_set(
    client: Client, grpcurl: Callable[..., str], tmp_path: Path
) -> None:
    """A caller without a key may call health, but not reflection."""
    saved = str(tmp_path / "health.binpb")
    grpcurl("-protoset-out", saved, client.address, "describe", "grpc.health.v1.Health")
    with serving(tmp_path, keys_file=KeysFile(tmp_path / "keys").path) as guarded:
        answer = grpcurl("-protoset", saved, guarded.address, "grpc.health.v1.Health/Check")
    assert json.loads(answer) == {"status": "SERVING"}
