"""The field rules of the contract hold for every RPC, and every field has a test."""

import importlib
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from tests.api.client_calls import COVERED_FIELDS, SIDES, People, call, full_error_text, raw_call, refused
from tests.api.sample_values import METHODS, SAMPLES, FieldRef, behaves, field_refs, full, is_map, is_ours
from tests.conftest import NewDatabase, serving
from tests.support.api_driver import RPCS, ApiDriver
from tests.support.servers import Client, Refusal, refusal

TESTS = Path(__file__).parent
PROTOS = TESTS.parent / "protos" / "caseload" / "v1"
IDENTIFIER = field_behavior_pb2.IDENTIFIER
REQUIRED = field_behavior_pb2.REQUIRED
OUTPUT_ONLY = field_behavior_pb2.OUTPUT_ONLY
CANARY = "Canary-Zq9"

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


@pytest.fixture(scope="module")
def rejecting(new_database: NewDatabase) -> Iterator[Client]:
    """A client of one server for all tests whose calls change nothing."""
    with new_database() as url, serving(url) as server:
        client = Client(server.address)
        yield client
        client.close()
        assert server.store.head_revision() == 0, "a call has changed something"


def answered(client: Client, method: MethodDescriptor, request: Message) -> Refusal | None:
    """Calls the method; returns its error, or None on success."""
    try:
        call(client, method, request)
    except grpc.RpcError as error:
        return refusal(error)
    return None


def messages_of_requests() -> Iterator[Descriptor]:
    """Yields every message type of the contract that requests consist of."""
    todo: list[Any] = [method.input_type for method in METHODS]
    seen: set[str] = set()
    while todo:
        message = todo.pop()
        if message.full_name not in seen:
            seen.add(message.full_name)
            yield message
            todo += [field.message_type for field in message.fields if is_ours(field)]


def test_the_contract_has_35_rpcs_and_one_stream() -> None:
    assert len(METHODS) == 35
    assert [method.name for method in METHODS if method.server_streaming] == ["WatchChanges"]


def test_every_service_of_the_contract_is_tested() -> None:
    written = {
        name
        for file in PROTOS.glob("*.proto")
        for name in re.findall(r"^service (\w+)", file.read_text(), re.MULTILINE)
    }
    assert {method.containing_service.name for method in METHODS} == written


def test_every_request_field_has_a_test_that_fails_if_it_is_ignored() -> None:
    for path in sorted((TESTS / "api").glob("test_*.py")):
        importlib.import_module(f"tests.api.{path.stem}")
    known = {f"{message.name}.{field.name}": field for message in messages_of_requests() for field in message.fields}
    left_to_the_server = {name for name, field in known.items() if behaves(field, OUTPUT_ONLY)}
    assert known.keys() - left_to_the_server - COVERED_FIELDS.keys() == set()


def test_every_field_named_by_a_test_exists_in_the_contract() -> None:
    """{A} and {B} stand for both kinds, so a name needs to exist for only one of them."""
    known = {f"{message.name}.{field.name}" for message in messages_of_requests() for field in message.fields}
    tests = {
        test: {name for name, tests in COVERED_FIELDS.items() if test in tests}
        for test in set().union(*COVERED_FIELDS.values())
    }
    assert [test for test, names in tests.items() if not names & known] == []


@every_method
def test_a_request_with_every_field_is_valid(rejecting: Client, method: MethodDescriptor) -> None:
    """Otherwise the tests below could pass for the wrong reason."""
    found = answered(rejecting, method, full(method))
    assert found is None or found.reason in {"THERAPIST_NOT_FOUND", "PATIENT_NOT_FOUND", "ASSIGNMENT_NOT_FOUND"}


Wanted = Callable[[MethodDescriptor, FieldRef], bool]
Put = Callable[[FieldRef], str]


def variants(method: MethodDescriptor, wanted: Wanted, *puts: Put) -> Iterator[tuple[str, Any]]:
    """Yields the full request with one changed field, for each wanted field and change, with the path of the field."""
    for found in field_refs(full(method)):
        for put in puts if wanted(method, found) else ():
            request = full(method)
            ref = next(ref for ref in field_refs(request) if ref.path == found.path)
            if ref.field.name == "states":
                ref.owner.ClearField("as_of_time")  # they exclude each other
            yield put(ref), request


def variants_not_named(client: Client, method: MethodDescriptor, wanted: Wanted, *puts: Put) -> list[object]:
    """The variants that are not rejected with INVALID_FIELD and exactly the changed field."""
    answers = [(path, answered(client, method, request)) for path, request in variants(method, wanted, *puts)]
    right = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    return [
        (path, found)
        for path, found in answers
        if found is None or (found.code, found.reason) != right or found.fields != [path]
    ]


def is_required(method: MethodDescriptor, ref: FieldRef) -> bool:
    """Required by the contract; the body of an Update also needs the id of the record."""
    return ref.behaves(REQUIRED) or (method.name.startswith("Update") and ref.behaves(IDENTIFIER))


def is_required_text(method: MethodDescriptor, ref: FieldRef) -> bool:
    return is_required(method, ref) and ref.field.type == FieldDescriptor.TYPE_STRING


def is_enum(method: MethodDescriptor, ref: FieldRef) -> bool:
    return ref.field.enum_type is not None and not is_ignored(method, ref)


def is_enum_list(method: MethodDescriptor, ref: FieldRef) -> bool:
    return is_enum(method, ref) and ref.field.is_repeated


def clear_field(ref: FieldRef) -> str:
    ref.owner.ClearField(ref.field.name)
    return ref.path


def set_unknown_number(ref: FieldRef) -> str:
    enumeration: Any = ref.field.enum_type
    return ref.put(max(value.number for value in enumeration.values) + 1)


def test_the_field_selectors_match_enough_fields() -> None:
    walked = {
        wanted.__name__: sum(wanted(method, ref) for method in METHODS for ref in field_refs(full(method)))
        for wanted in (is_required, is_required_text, is_enum, is_enum_list, is_text)
    }
    assert all(count >= 6 for count in walked.values()), walked


@every_method
def test_an_empty_required_field_is_named(rejecting: Client, method: MethodDescriptor) -> None:
    assert variants_not_named(rejecting, method, is_required, clear_field) == []


@every_method
def test_a_blank_required_text_is_named(rejecting: Client, method: MethodDescriptor) -> None:
    blanks = (lambda ref: ref.put(" "), lambda ref: ref.put("\u2003\u200b"))
    assert variants_not_named(rejecting, method, is_required_text, *blanks) == []


@every_method
def test_an_unknown_enum_number_is_named(rejecting: Client, method: MethodDescriptor) -> None:
    far = (lambda ref: ref.put(-1), lambda ref: ref.put(2**31 - 1), lambda ref: ref.put(-(2**31)))
    assert variants_not_named(rejecting, method, is_enum, set_unknown_number, *far) == []


@every_method
def test_unspecified_in_a_filter_is_named(rejecting: Client, method: MethodDescriptor) -> None:
    assert variants_not_named(rejecting, method, is_enum_list, lambda ref: ref.put(0)) == []


@pytest.mark.parametrize("kind", SIDES)
def test_create_ignores_server_set_fields_in_the_body(client: Client, kind: str) -> None:
    people = People(client, kind)
    method = next(method for method in METHODS if method.name == f"Create{kind}")
    request = full(method)
    request.validate_only = False
    filled = [ref for ref in field_refs(request) if ref.behaves(OUTPUT_ONLY) or ref.field.name == "etag"]
    assert len(filled) >= 5
    given = {ref.field.name: str(getattr(ref.owner, ref.field.name)) for ref in filled}
    made = people.record(call(client, method, request))
    assert [name for name, value in given.items() if str(getattr(made, name)) == value] == []
    assert not made.HasField("delete_time")
    assert getattr(made, people.count) == 0


def is_text(_method: MethodDescriptor, ref: FieldRef) -> bool:
    return ref.field.type == FieldDescriptor.TYPE_STRING or is_map(ref.field) or ref.field.name == "update_mask"


def is_ignored(method: MethodDescriptor, ref: FieldRef) -> bool:
    creates = method.name.startswith(("Create", "BatchCreate"))
    return ref.behaves(OUTPUT_ONLY) or (creates and (ref.path.endswith(".etag") or ref.behaves(IDENTIFIER)))


def canary(tail: str) -> Put:
    """Returns a change that sets a field to a word that no error may repeat, followed by the tail."""

    def put(ref: FieldRef) -> str:
        if is_map(ref.field):
            getattr(ref.owner, ref.field.name).update({CANARY + tail: CANARY + tail, "\x00": CANARY})
        elif ref.field.name == "update_mask":
            ref.owner.update_mask.paths[:] = [CANARY + tail, f"display_name.{CANARY}{tail}"]
        else:
            ref.put(CANARY + tail)
        return ref.path

    return put


@every_method
def test_no_error_repeats_a_value(rejecting: Client, method: MethodDescriptor) -> None:
    refusals: dict[str, str] = {}
    for path, request in variants(method, is_text, *map(canary, ("", "\x00", "x" * 2000, " @ @", "\ufffd"))):
        if "allow_missing" in method.input_type.fields_by_name:
            request.allow_missing = False
        try:
            call(rejecting, method, request)
        except grpc.RpcError as error:
            refusals[path] = refusals.get(path, "") + full_error_text(error).lower()
    read = {ref.path for ref in field_refs(full(method)) if is_text(method, ref) and not is_ignored(method, ref)}
    assert read <= refusals.keys()
    assert [path for path, said in refusals.items() if CANARY.lower() in said] == []


def unparsed(client: Client, method: MethodDescriptor, data: bytes) -> tuple[object, ...]:
    """The code, reason and fields of the error for bytes that are not a valid request."""
    send = raw_call(client, method)
    found = refused(lambda: next(send(data)) if method.server_streaming else send(data))
    return found.code, found.reason, found.fields


@every_method
def test_unparsable_bytes_are_an_invalid_field_without_a_name(rejecting: Client, method: MethodDescriptor) -> None:
    nameless = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", [""])
    for data in (b"\xff", b"\x0a\x05abc", b"\x0b"):
        assert unparsed(rejecting, method, data) == nameless, data


LONE_SURROGATE = b"\xed\xa0\x80"
SURROGATES = {
    "CreateTherapist": b"\x0a\x05\x12\x03" + LONE_SURROGATE,  # therapist { display_name }
    "TransferPatients": b"\x1a\x03" + LONE_SURROGATE,  # patient_ids
    "WatchChanges": b"\x12\x05\x1a\x03" + LONE_SURROGATE,  # filter { actor }
}


@pytest.mark.parametrize("rpc", SURROGATES)
def test_lone_surrogates_are_rejected(rejecting: Client, rpc: str) -> None:
    assert unparsed(rejecting, RPCS[rpc], SURROGATES[rpc])[1:] == ("INVALID_FIELD", [""])


@pytest.mark.parametrize("ended", [False, True])
def test_a_rejected_correction_of_an_existing_assignment_repeats_no_value(client: Client, *, ended: bool) -> None:
    """The test above corrects no existing assignment; here the values are compared with the stored one."""
    with ApiDriver(client.address) as api:
        api.therapists("t1")
        api.patients("p1")
        period = api.period("t1", "p1", 0, 10) if ended else api.assign("t1", "p1")
        for name, word in itertools.product(
            ("therapist_id", "patient_id", "focus"), (CANARY, CANARY.lower(), f"{CANARY}\x00")
        ):
            for masked, etag in itertools.product((False, True), (CANARY, "")):
                if name == "focus" and word == CANARY.lower() and not etag:
                    continue  # this is a valid correction
                with pytest.raises(grpc.RpcError) as caught:
                    api.correct(period.assignment_id, *([name] if masked else []), etag=etag, **{name: word})
                assert CANARY.lower() not in full_error_text(caught.value).lower()


def test_a_correction_ignores_server_set_fields_in_the_body(client: Client) -> None:
    with ApiDriver(client.address) as api:
        api.therapists("t1")
        api.patients("p1")
        before = api.assign("t1", "p1")
        sent = {field.name: SAMPLES[field.name] for field in before.DESCRIPTOR.fields if behaves(field, OUTPUT_ONLY)}
        assert len(sent) == 5
        sent |= {"state": 2, "created_by": CANARY, "ended_by": CANARY}
        after = api.correct(before.assignment_id, focus="grief", **sent).assignment
    assert (after.focus, after.state, after.created_by, after.ended_by) == ("grief", 1, before.created_by, "")
    assert after.create_time == before.create_time
    assert after.update_time.ToNanoseconds() > before.update_time.ToNanoseconds()
