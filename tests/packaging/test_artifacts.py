"""What `make artifacts` writes: callers can generate from each file without anything else of ours."""

import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.docs.doc_blocks import ROOT, artifacts, search_path
from tests.support.missing_tool import NoTool
from tests.support.waiting import HUNG_SECONDS
from tests.test_http_rules import UNARY, http_rule, query_fields, verb_and_path

pytestmark = [pytest.mark.slow, pytest.mark.checkout]


def run(folder: Path, *command: str) -> None:
    environment = os.environ | {"PATH": search_path()}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HUNG_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr


def described(path: Path) -> dict[str, Any]:
    """The files of a descriptor set by name."""
    return {file.name: file for file in FileDescriptorSet.FromString(path.read_bytes()).file}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The .proto files of the archive, alone in a folder."""
    with zipfile.ZipFile(artifacts()[0]) as packed:
        packed.extractall(tmp_path / "protos")
    return tmp_path / "protos"


def test_the_archive_has_the_contract_and_the_settings_of_a_channel(archive: Path) -> None:
    contract = ROOT / "protos" / "caseload" / "v1"
    ours = {path.name: path.read_text() for path in contract.glob("*.proto")}
    assert {path.name: path.read_text() for path in (archive / "caseload" / "v1").iterdir()} == ours
    settings = ROOT / "client" / "caseload" / "client" / "service_config.json"
    assert (archive / "service_config.json").read_text() == settings.read_text()


def test_the_archive_needs_nothing_but_the_files_that_protoc_has(archive: Path) -> None:
    files = sorted(str(path.relative_to(archive)) for path in archive.rglob("*.proto"))
    run(archive, "buf", "build", "-o", "image.binpb")
    run(archive, "protoc", "-I", ".", "--descriptor_set_out=set.binpb", *files)
    assert sorted(described(archive / "set.binpb")) == files
    assert set(files) <= described(archive / "image.binpb").keys()


def test_the_descriptor_set_has_each_file_of_the_archive_with_comments_and_every_import(archive: Path) -> None:
    found = described(artifacts()[1])
    named = {str(path.relative_to(archive)) for path in archive.rglob("*.proto")}
    assert named <= found.keys()
    assert [
        name
        for name in named
        if not any(location.leading_comments for location in found[name].source_code_info.location)
    ] == []
    assert {name for file in found.values() for name in file.dependency} <= found.keys()


def test_buf_builds_a_clone_from_its_descriptor_set_without_a_network() -> None:
    run(ROOT, "buf", "build", "generated/caseload/v1/caseload.binpb")


def openapi() -> Any:
    path = ROOT / "dist" / "caseload.openapi.json"
    if not path.exists():
        raise NoTool("needs the OpenAPI document: make artifacts, which needs Go 1.26")
    return json.loads(path.read_text())


def test_the_openapi_document_has_each_http_call_with_the_parameters_of_its_query() -> None:
    shown = {
        call["operationId"].partition("_")[2]: (
            method.upper(),
            path,
            {parameter["name"] for parameter in call.get("parameters", []) if parameter["in"] == "query"},
        )
        for path, calls in openapi()["paths"].items()
        for method, call in calls.items()
    }
    assert shown.keys() == {method.name for method in UNARY}
    for method in UNARY:
        verb, path = verb_and_path(http_rule(method))
        one_name = path.replace("{therapist.", "{").replace("{patient.", "{").replace("{assignment.", "{")
        chains = query_fields(method.input_type, http_rule(method).body)
        query = {".".join(field.name for field in chain) for chain in chains}
        assert shown[method.name] == (verb, one_name, query - path_names(path))


def path_names(path: str) -> set[str]:
    """The fields in a path, also those before a verb."""
    return {part.partition("}")[0] for part in path.split("{")[1:]}


def test_the_openapi_document_uses_the_names_of_the_contract() -> None:
    schemas = openapi()["components"]["schemas"]
    for kind in ("Therapist", "Patient", "Assignment"):
        message: Any = (
            next(method.output_type for method in UNARY if method.name == f"Get{kind}").fields[0].message_type
        )
        assert schemas[f"caseload.v1.{kind}"]["properties"].keys() == {field.name for field in message.fields}
