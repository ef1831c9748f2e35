"""Times in requests: not before 1900, and up to a minute ahead of the server's clock, because clocks differ."""

import itertools
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from tests.api.client_calls import call
from tests.api.sample_values import METHODS, FieldRef, behaves, field_refs, full
from tests.support.api_driver import ACTIVE, ApiDriver, ahead, at
from tests.support.servers import Client, Refusal, refusal

OUTPUT_ONLY = 3
TIME = "google.protobuf.Timestamp"
YEAR_1, LAST_BEFORE_1900 = {"seconds": -62_135_596_800}, {"seconds": -2_208_988_801, "nanos": 999_999_999}
"""The zero time of Go and of C#, and the last nanosecond that is too early."""
FIRST, EPOCH = {"seconds": -2_208_988_800}, {"seconds": 0}
"""1900-01-01T00:00:00Z and 1970-01-01T00:00:00Z."""


def times(request: Any) -> Iterator[FieldRef]:
    for ref in field_refs(request):
        is_time = ref.field.message_type is not None and ref.field.message_type.full_name == TIME
        if is_time and not behaves(ref.field, OUTPUT_ONLY):
            yield ref


def answers(client: Client, method: MethodDescriptor, time: dict[str, int]) -> Iterator[tuple[str, Refusal | None]]:
    """The error, if any, of a request for each of its times, set to this one."""
    for path in [ref.path for ref in times(full(method))]:
        request = full(method)
        [ref] = [ref for ref in times(request) if ref.path == path]
        getattr(ref.owner, ref.field.name).CopyFrom(Timestamp(**time))
        if method.name == "UpdateAssignment":
            request.update_mask.paths[:] = [ref.field.name]  # "*" leaves out expire_time
        try:
            call(client, method, request)
        except grpc.RpcError as error:
            yield path, refusal(error)
        else:
            yield path, None


def test_a_time_before_1900_is_rejected_with_its_field(client: Client) -> None:
    methods = [method for method in METHODS if list(times(full(method)))]
    assert len(methods) > 10
    for method, time in itertools.product(methods, (YEAR_1, LAST_BEFORE_1900)):
        for path, found in answers(client, method, time):
            assert found is not None, (method.name, path)
            assert found.reason == "INVALID_FIELD"
            assert path in found.fields


def test_the_message_for_a_time_before_1900_names_the_limit(api: ApiDriver) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        api.assign("t1", "p1", start_time=YEAR_1)
    assert refusal(caught.value).message == "start_time: must not lie before 1900-01-01T00:00:00Z"


def test_a_period_from_1900_or_from_the_unix_epoch_is_valid(api: ApiDriver) -> None:
    assert api.assign("t1", "p1", start_time=FIRST).start_time.seconds == FIRST["seconds"]
    assert api.assign("t1", "p2", start_time=EPOCH).HasField("start_time")
    assert api.checked(("t1", "p1"), ("t1", "p2"), as_of_time=FIRST) == [True, False]
    assert api.checked(("t1", "p1"), ("t1", "p2"), as_of_time=EPOCH) == [True, True]


def reads(api: ApiDriver, time: Any) -> list[bool]:
    """Whether t1 and p1 are assigned at a time, according to each read that takes one."""
    filters = {"as_of_time": time}
    return [
        *api.checked(("t1", "p1"), as_of_time=time),
        bool(api.listed(**filters)),
        bool(api.send("ListTherapistPatients", therapist_id="t1", **filters).entries),
        bool(api.send("ListPatientTherapists", patient_id="p1", **filters).entries),
    ]


def test_reads_accept_a_time_up_to_a_minute_ahead_and_evaluate_it_as_given(api: ApiDriver) -> None:
    start = api.assign("t1", "p1", start_time=ahead(40)).start_time
    assert reads(api, start) == [True] * 4
    before = type(start)()
    before.FromMicroseconds(start.ToMicroseconds() - 1)
    assert reads(api, before) == [False] * 4


def test_reads_accept_every_start_that_the_server_has_chosen(api: ApiDriver) -> None:
    api.assign("t1", "p1", start_time=at(0))
    api.unassign("t1", "p1", end_time=ahead(50))
    moved = api.assign("t1", "p1")
    assert reads(api, moved.start_time) == [True] * 4
    assert moved.state == ACTIVE
    assert reads(api, api.assign("t1", "p1", focus="grief", replace=True).start_time) == [True] * 4
