"""Each unary RPC has an HTTP call, and no URL can hold personal data: docs/http.md lists the calls."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from tests.api.sample_values import METHODS, is_ours

PAGE: Final = Path(__file__).parents[1] / "docs" / "http.md"
UNARY: Final = [method for method in METHODS if not method.server_streaming]

IDS: Final = {"assignment_id", "patient_id", "patient_ids", "request_id", "therapist_id", "therapist_ids"} | {
    *("source_patient_id", "target_patient_id"),
}
TEXTS: Final = IDS | {"etag", "order_by", "page_token"}
"""Every text that a URL may hold. A new one is added only if it can never hold data of a person."""
MESSAGES: Final = {"google.protobuf.FieldMask", "google.protobuf.Timestamp"}
SCALARS: Final = {FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_ENUM, FieldDescriptor.TYPE_INT32}

every_rpc = pytest.mark.parametrize("method", UNARY, ids=lambda method: method.name)


def http_rule(method: MethodDescriptor) -> HttpRule:
    rule: HttpRule = method.GetOptions().Extensions[annotations_pb2.http]
    return rule


def verb_and_path(rule: HttpRule) -> tuple[str, str]:
    verb = rule.WhichOneof("pattern")
    return str(verb).upper(), getattr(rule, str(verb))


def path_fields(method: MethodDescriptor, rule: HttpRule) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yields the fields in the path, each with the fields that lead to it."""
    for name in re.findall(r"{([^}]+)}", verb_and_path(rule)[1]):
        owner: Any = method.input_type
        chain = []
        for part in name.split("."):
            chain.append(owner.fields_by_name[part])
            owner = chain[-1].message_type
        yield tuple(chain)


def query_fields(message: Any, body: str, *chain: FieldDescriptor) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yields every field that a gateway accepts in the query: all that are not in the body."""
    for field in message.fields if body != "*" else ():
        if field.name == body:
            continue
        if is_ours(field) and not field.is_repeated:
            yield from query_fields(field.message_type, "", *chain, field)
        else:
            yield (*chain, field)


def may_stand_in_a_url(field: FieldDescriptor) -> bool:
    if field.type == FieldDescriptor.TYPE_STRING:
        return field.name in TEXTS
    kind: Any = field.message_type
    return field.type in SCALARS or (kind is not None and kind.full_name in MESSAGES and not field.is_repeated)


def unsafe_fields(method: MethodDescriptor, rule: HttpRule) -> list[str]:
    """The fields that must not be in a URL, but could be."""
    chains = [*path_fields(method, rule), *query_fields(method.input_type, rule.body)]
    return [
        ".".join(field.name for field in chain)
        for chain in chains
        if any(field.GetOptions().debug_redact for field in chain) or not may_stand_in_a_url(chain[-1])
    ]


@every_rpc
def test_each_unary_rpc_has_one_http_call(method: MethodDescriptor) -> None:
    verb, path = verb_and_path(http_rule(method))
    assert verb in {"GET", "POST", "PATCH", "DELETE"}
    assert path.startswith("/v1/")
    assert not http_rule(method).additional_bindings


def test_a_stream_has_no_http_call() -> None:
    assert [method.name for method in METHODS if not http_rule(method).WhichOneof("pattern")] == ["WatchChanges"]


def test_no_two_rpcs_have_the_same_http_call() -> None:
    calls = [(verb, re.sub(r"{[^}]+}", "{}", path)) for verb, path in map(verb_and_path, map(http_rule, UNARY))]
    assert len(set(calls)) == len(calls)


@every_rpc
def test_no_url_can_hold_personal_data(method: MethodDescriptor) -> None:
    assert unsafe_fields(method, http_rule(method)) == []


@pytest.mark.parametrize(
    ("rpc", "rule", "found"),
    [
        ("ListPatients", HttpRule(get="/v1/patients"), {"filter.name_prefix", "filter.identifier.value"}),
        ("ListTherapists", HttpRule(get="/v1/therapists"), {"filter.specialties", "filter.identifier.system"}),
        ("ListChanges", HttpRule(get="/v1/changes"), {"filter.actor"}),
        ("CreatePatient", HttpRule(post="/v1/patients"), {"patient.birth_date", "patient.annotations"}),
        ("UpdatePatient", HttpRule(patch="/v1/{patient.display_name}", body="*"), {"patient.display_name"}),
        ("AssignPatient", HttpRule(post="/v1/assignments"), {"focus"}),
        ("CheckAssignments", HttpRule(get="/v1/assignments"), {"pairs"}),
    ],
)
def test_personal_data_in_a_url_is_found(rpc: str, rule: HttpRule, found: set[str]) -> None:
    [method] = [method for method in UNARY if method.name == rpc]
    assert found <= set(unsafe_fields(method, rule))


def test_reads_are_get_unless_their_request_has_texts() -> None:
    """A cache or a proxy may repeat a GET, so no write is one."""
    reads = {method.name for method in UNARY if method.GetOptions().idempotency_level == 1}
    gets = {method.name for method in UNARY if verb_and_path(http_rule(method))[0] == "GET"}
    assert reads - gets == {"ListTherapists", "ListPatients", "ListChanges", "CheckAssignments"}
    assert gets <= reads


def test_the_page_lists_the_http_call_of_each_rpc() -> None:
    listed = re.findall(r"^\| (\w+) \| `(\w+) (/[^`]+)` \| (\S+) \| (\S+) \|$", PAGE.read_text(), re.MULTILINE)
    wanted = [
        (
            method.name,
            *verb_and_path(http_rule(method)),
            f"`{http_rule(method).body}`" if http_rule(method).body else "none",
            f"`{http_rule(method).response_body}`" if http_rule(method).response_body else "whole",
        )
        for method in UNARY
    ]
    assert listed == wanted


def test_the_configuration_of_envoy_names_each_service() -> None:
    text = (PAGE.parent / "deploy" / "gateway" / "envoy.yaml").read_text()
    named = re.findall(r"^ +- (caseload\.v1\.\w+)$", text, re.MULTILINE)
    assert set(named) == {method.containing_service.full_name for method in METHODS}
