"""The end user for whom a caller acts: metadata of a call, and a field and a filter of the change log."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1.therapist_service_pb2 import GetTherapistRequest
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from caseload_server.rpc.server import CaseloadServer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.api.client_calls import covers
from tests.security.server_fixture import KeysFile, LogReader, Metadata, bearer, logging, serving
from tests.support.api_driver import ApiDriver, new_request_id, refused, request
from tests.support.servers import Client, refusal
from tests.support.waiting import eventually
from tests.support.watch_reader import WatchReader

KEY = "caseload-on-behalf-of"
MALFORMED = [
    *("", " ", "Ann Lee", "ann@example.org", "a" * 129),
    *("a/b", "a,b", 'a"b', "a\\b", "a;b"),
]


def user(name: str) -> Metadata:
    return ((KEY, name),)


@pytest.fixture
def api(server: CaseloadServer) -> Iterator[ApiDriver]:
    with ApiDriver(server.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def refusing(shared_client: Client) -> Iterator[ApiDriver]:
    """For calls that are rejected."""
    with ApiDriver(shared_client.address) as opened:
        yield opened


def create(api: ApiDriver, patient_id: str, *names: str) -> None:
    metadata = [(KEY, name) for name in names]
    api.send("CreatePatient", metadata=metadata, patient_id=patient_id, patient={"display_name": "Bob Ray"})


@pytest.mark.parametrize("name", ["jdoe", "4711", "J.Doe_1:realm-2", "a" * 128, "-"])
def test_a_change_set_has_the_end_user_of_its_call(api: ApiDriver, name: str) -> None:
    create(api, "p1", name)
    create(api, "p2")
    assert [one.on_behalf_of for one in api.log()] == [name, ""]
    assert [one.actor for one in api.log()] == ["local", "local"]


@covers("ChangeFilter.on_behalf_of", "ListChangesRequest.filter")
def test_a_list_of_changes_can_be_filtered_by_the_end_user(api: ApiDriver) -> None:
    for number in range(12):
        create(api, f"p{number}", *([["jdoe"], ["jdoe2"], []][number % 3]))
    whole = list(api.log())
    for name, actor, patient_id, size in itertools.product(
        ("jdoe", "jdoe2", "JDOE", ""), ("", "local", "x"), ("", "p3", "p4"), (1, 1000)
    ):
        matching = [
            one
            for one in whole
            if name in ("", one.on_behalf_of) and actor in ("", one.actor) and patient_id in ("", _patient(one))
        ]
        found = api.log(page_size=size, on_behalf_of=name, actor=actor, patient_id=patient_id)
        assert list(found) == matching, (name, actor, patient_id, size)


def _patient(change_set: Any) -> str:
    return str(change_set.changes[0].patient_id)


@covers("WatchChangesRequest.filter", "ChangeFilter.on_behalf_of")
def test_a_watch_can_be_filtered_by_the_end_user(api: ApiDriver) -> None:
    with WatchReader(api, api.head(), on_behalf_of="jdoe") as reader:
        create(api, "p1", "jdoe")
        create(api, "p2", "other")
        create(api, "p3")
        create(api, "p4", "jdoe")
        reader.wait_through(api.head())
    assert [_patient(one) for one in reader.sets] == ["p1", "p4"]


@pytest.mark.parametrize("name", [name for name in MALFORMED if name.strip()])
def test_a_malformed_filter_is_rejected(refusing: ApiDriver, name: str) -> None:
    for found in (
        refused(refusing.send, "ListChanges", filter={"on_behalf_of": name}),
        refused(next, refusing.watch(on_behalf_of=name)),
    ):
        assert (found.reason, found.fields) == ("INVALID_FIELD", ["filter.on_behalf_of"])
        assert name not in found.message


@pytest.mark.parametrize("names", [*([name] for name in MALFORMED), ["jdoe", "jdoe"], ["jdoe", "other"]], ids=repr)
def test_a_malformed_end_user_or_two_are_rejected_and_nothing_is_written(refusing: ApiDriver, names: list[str]) -> None:
    before = refusing.head()
    metadata = [(KEY, name) for name in names]
    for call in (
        lambda: create(refusing, "p1", *names),
        lambda: refusing.send("GetPatient", metadata=metadata, patient_id="p1"),
        lambda: refusing.send("ListChanges", metadata=metadata),
    ):
        found = refused(call)
        assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert found.fields == [f"metadata.{KEY}"]
        assert not any(name.strip() and name in found.message for name in names if len(name) > 3)
    assert refusing.head() == before


def test_the_end_user_is_checked_after_authorization(tmp_path: Path) -> None:
    keys_file = KeysFile(tmp_path / "keys")
    writer, reader = keys_file.add("writer", "write"), keys_file.add("reader", "read")
    with serving(tmp_path, keys_file=keys_file.path) as server, grpc.insecure_channel(server.address) as channel:
        stub = TherapistServiceStub(channel)
        for metadata, expected in (
            ((), "UNAUTHENTICATED"),
            (bearer(writer), "PERMISSION_DENIED"),
            (bearer(reader), "INVALID_FIELD"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetTherapist(GetTherapistRequest(therapist_id="t"), metadata=(*metadata, (KEY, "Ann Lee")))
            assert refusal(caught.value).reason == expected


def test_a_replay_keeps_the_first_end_user(api: ApiDriver) -> None:
    request_id = new_request_id()
    answers = [
        api.send("CreatePatient", metadata=metadata, request_id=request_id, patient={"display_name": "Bob Ray"})
        for metadata in (user("jdoe"), user("other"), ())
    ]
    assert len({answer.SerializeToString() for answer in answers}) == 1
    assert [one.on_behalf_of for one in api.log()] == ["jdoe"]


def test_the_access_log_has_the_end_user_of_reads_writes_and_watches(tmp_path: Path) -> None:
    with logging(tmp_path) as (server, api, reader):
        create(api, "p1", "jdoe")
        api.send("GetPatient", metadata=user("other"), patient_id="p1")
        api.send("GetPatient", patient_id="p1")
        refused(api.send, "GetPatient", metadata=user("third"), patient_id="missing")
        refused(api.send, "GetPatient", metadata=user("Ann Lee"), patient_id="p1")
        watch = api._calls["WatchChanges"](request("WatchChanges"), metadata=user("watcher"))
        next(watch)
        watch.cancel()
        with grpc.insecure_channel(server.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            health.Check(health_pb2.HealthCheckRequest(), metadata=user("Ann Lee"))
        eventually(lambda: len(reader.lines()) >= 8, reader.lines)
        lines = reader.lines()
    found = [(line["method"].rpartition("/")[2], line.get("code"), line.get("on_behalf_of")) for line in lines]
    assert sorted(found, key=str) == sorted(
        [
            ("CreatePatient", "OK", "jdoe"),
            ("GetPatient", "OK", "other"),
            ("GetPatient", "OK", None),
            ("GetPatient", "NOT_FOUND", "third"),
            ("GetPatient", "INVALID_ARGUMENT", None),
            ("WatchChanges", None, "watcher"),  # the line of its beginning
            ("WatchChanges", "CANCELLED", "watcher"),
            ("Check", "OK", None),
        ],
        key=str,
    )
    assert "Ann Lee" not in json.dumps(lines)


def test_the_access_log_has_the_end_user_of_a_call_without_permission(tmp_path: Path) -> None:
    keys_file = KeysFile(tmp_path / "keys")
    key = keys_file.add("writer", "write")
    path = tmp_path / "access.log"
    with (
        serving(tmp_path, keys_file=keys_file.path, access_log=path) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = TherapistServiceStub(channel)
        for credentials, name in ((bearer(key), "jdoe"), (bearer(key), "Ann Lee"), (bearer("stranger"), "jdoe")):
            with pytest.raises(grpc.RpcError):
                stub.GetTherapist(GetTherapistRequest(therapist_id="t"), metadata=(*credentials, *user(name)))
        lines = LogReader(path).lines()
    found = [(line["code"], line.get("on_behalf_of")) for line in lines]
    assert found == [("PERMISSION_DENIED", "jdoe"), ("PERMISSION_DENIED", None), ("UNAUTHENTICATED", None)]
