"""A request is as large as the contract's limits allow for its method, and a rejected one costs no more than that."""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from caseload.v1 import assignment_service_pb2, change_service_pb2, patient_service_pb2
from caseload_server import validation as validate
from caseload_server.domain.errors import InvalidField, Violation
from caseload_server.domain.limits import (
    MAX_ASSIGNMENTS_PER_CALL,
    MAX_BATCH_SIZE,
    MAX_LOGGED_IDS,
    MAX_MASK_PATHS,
    MAX_MESSAGE_BYTES,
    MAX_RECORD_BYTES,
)
from caseload_server.observability.audited_ids import request_ids, response_ids
from caseload_server.validation.request_sizes import max_request_bytes
from google.protobuf.descriptor import MethodDescriptor

from tests.api.client_calls import raw_call
from tests.api.sample_values import METHODS, field_refs, full, is_ours
from tests.support.api_driver import RPCS
from tests.support.servers import Client, Refusal, refusal

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
THREE_TIMES_AS_LONG = "\u03b9\u0308\u0301"
"""Iota with dialytika and tonos: six bytes, and two bytes after normalization. No character grows more."""


def answered(client: Client, method: MethodDescriptor, data: bytes) -> Refusal | None:
    send = raw_call(client, method)
    try:
        answer = send(data)
        if method.server_streaming:
            next(answer)
            answer.cancel()
    except grpc.RpcError as error:
        return refusal(error)
    return None


def rejected_as_too_large(found: Refusal | None, method: MethodDescriptor) -> bool:
    said = f"request: must have at most {max_request_bytes(method.input_type)} bytes"
    return found is not None and (found.reason, found.fields, found.message) == ("INVALID_FIELD", [""], said)


@pytest.mark.slow
@every_method
def test_a_request_above_the_bytes_of_its_method_is_rejected_before_it_is_parsed(
    client: Client, method: MethodDescriptor
) -> None:
    most = max_request_bytes(method.input_type)
    garbage = b"\xff" * (most + 1)
    if most == MAX_MESSAGE_BYTES:  # the gRPC library rejects a larger one
        with pytest.raises(grpc.RpcError, match="larger than max"):
            raw_call(client, method)(garbage)
        return
    assert rejected_as_too_large(answered(client, method, garbage), method)
    assert not rejected_as_too_large(answered(client, method, garbage[:-1]), method)
    padding = b"\x9a\x06" + len(garbage).to_bytes(4, "little") + garbage  # unknown fields count too
    assert rejected_as_too_large(answered(client, method, padding), method)


LARGEST: dict[str, Any] = {
    "annotations": {f"{n:02}": THREE_TIMES_AS_LONG * 440 for n in range(32)},
    "display_name": THREE_TIMES_AS_LONG * 200,
    "name_prefix": THREE_TIMES_AS_LONG * 100,
    "email": THREE_TIMES_AS_LONG * 252 + "@x",
    "actor": THREE_TIMES_AS_LONG * 200,
    "on_behalf_of": "a" * 128,
    "focus": "a" * 64,
    "value": THREE_TIMES_AS_LONG * 200,
    "system": "urn:" + "x" * 196,
    "specialties": [f"{n:02}" + "a" * 62 for n in range(20)],
    "therapist_ids": [f"{n:03}" + "a" * 60 for n in range(MAX_BATCH_SIZE)],
    "statuses": [1] * 100,
    "roles": [1] * 100,
    "update_mask": {"paths": ["display_name"] * MAX_MASK_PATHS},
}
"""The largest valid value of a field by its name. Both sides have the same limits."""
UPDATE_ASSIGNMENT = {"update_mask": {"paths": ["start_time"] * MAX_MASK_PATHS}}


def largest(method: MethodDescriptor) -> Any:
    """Returns the largest valid request of a method, nearly."""
    request = full(method)
    for ref in list(field_refs(request)):
        values = LARGEST | (UPDATE_ASSIGNMENT if method.name == "UpdateAssignment" else {})
        values |= patient_ids(method)
        if ref.field.name in values and not is_ours(ref.field):
            ref.owner.ClearField(ref.field.name)
            ref.owner.MergeFrom(type(ref.owner)(**{ref.field.name: values[ref.field.name]}))
        elif ref.field.name.endswith("_id") and ref.field.name != "request_id":
            setattr(ref.owner, ref.field.name, ref.field.name[:1] + "a" * 62)
    if method.name == "CheckAssignments":
        request.pairs.extend([request.pairs[0]] * (MAX_BATCH_SIZE - 1))
    if method.name == "BatchAssign":
        request.requests.extend([request.requests[0]] * (MAX_BATCH_SIZE - 1))
    return request


def patient_ids(method: MethodDescriptor) -> dict[str, list[str]]:
    count = MAX_ASSIGNMENTS_PER_CALL if method.name == "TransferPatients" else MAX_BATCH_SIZE
    return {"patient_ids": [f"{n:04}" + "a" * 59 for n in range(count)]}


@pytest.mark.slow
@every_method
def test_the_largest_valid_request_is_not_too_large(client: Client, method: MethodDescriptor) -> None:
    request = largest(method)
    found = answered(client, method, request.SerializeToString())
    assert found is None or found.reason.endswith("_NOT_FOUND"), found
    if method.name in {"CreateTherapist", "CreatePatient"}:
        assert request.ByteSize() > 2.6 * MAX_RECORD_BYTES


class Unwalkable(Sequence[Any]):
    """A list of many entries, none of which may be looked at."""

    def __len__(self) -> int:
        return 500_000

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError(f"entry {index} was looked at")


def violation(check: Callable[..., object], *arguments: Any) -> Violation:
    """Returns the only violation of a request that the validation rejects."""
    with pytest.raises(InvalidField) as caught:
        check(*arguments)
    [found] = caught.value.violations
    return found


def test_a_list_that_is_too_long_is_rejected_without_a_look_at_its_entries() -> None:
    of_batch = "must have 1 to 100 entries"
    many: Any = SimpleNamespace(pairs=Unwalkable())
    assert violation(validate.batch_ids, Unwalkable(), "patient_ids") == ("patient_ids", of_batch)
    assert violation(validate.check_assignments, many, 0) == ("pairs", of_batch)
    many = SimpleNamespace(requests=Unwalkable(), request_id="")
    assert violation(validate.batch_assign, many, 0) == ("requests", of_batch)
    many = SimpleNamespace(patient_ids=Unwalkable(), request_id="0190a3c4-0000-7000-8000-000000000001")
    assert violation(validate.transfer_patients, many, 0) == ("patient_ids", "must have at most 1000 entries")


@pytest.mark.parametrize("rpc", ["UpdatePatient", "UpdateAssignment"])
def test_a_mask_that_is_too_long_is_rejected_without_a_look_at_its_paths(rpc: str) -> None:
    request = full(RPCS[rpc])
    fields = {field.name: value for field, value in request.ListFields()}
    masked = SimpleNamespace(
        **{**fields, "update_mask": SimpleNamespace(paths=Unwalkable())}, HasField=request.HasField
    )
    validate_update: Any = validate.update_patient if rpc == "UpdatePatient" else validate.update_assignment
    assert violation(validate_update, masked, 0) == ("update_mask", "must have at most 100 paths")


class Counted(Sequence[Any]):
    """A list that counts the entries that are looked at."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self.seen = 0

    def __len__(self) -> int:
        return 500_000

    def __getitem__(self, index: Any) -> Any:
        return self._make(index)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            self.seen += 1
            yield self._make(index)


def test_the_log_stops_at_the_ids_that_a_line_may_have() -> None:
    pairs = Counted(lambda n: assignment_service_pb2.CheckAssignmentsRequest.Pair(patient_id=f"p{n}"))
    check: Any = assignment_service_pb2.CheckAssignmentsRequest.DESCRIPTOR
    assert len(request_ids(check, "patient").extract(SimpleNamespace(pairs=pairs))) > MAX_LOGGED_IDS
    assert pairs.seen == MAX_LOGGED_IDS + 1
    ids = Counted(lambda n: f"p{n}")
    batch: Any = patient_service_pb2.BatchGetPatientsRequest.DESCRIPTOR
    assert len(request_ids(batch, "patient").extract(SimpleNamespace(patient_ids=ids))) == MAX_LOGGED_IDS + 1
    assert ids.seen == MAX_LOGGED_IDS + 1
    changes = Counted(lambda n: change_service_pb2.Change(patient_id=f"p{n}"))
    listed: Any = change_service_pb2.ListChangesResponse.DESCRIPTOR
    response = SimpleNamespace(change_sets=[SimpleNamespace(changes=changes)] * 1000)
    assert len(response_ids(listed, "patient").extract(response)) > MAX_LOGGED_IDS
    assert changes.seen < 10 * MAX_LOGGED_IDS


def test_the_log_counts_a_repeated_id_once_before_it_stops() -> None:
    changes = [change_service_pb2.Change(patient_id=f"p{n % 900}") for n in range(8000)]
    changes += [change_service_pb2.Change(patient_id="last")]
    sets = change_service_pb2.ListChangesResponse(change_sets=[change_service_pb2.ChangeSet(changes=changes)])
    listed: Any = sets.DESCRIPTOR
    assert {"p0", "p899", "last"} <= set(response_ids(listed, "patient").extract(sets))
