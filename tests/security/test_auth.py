"""Authentication: keys in the metadata, and the stored name of the caller."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1 import change_service_pb2 as change_pb
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.resources_pb2 import Therapist
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from caseload_server.rpc.server import CaseloadServer
from caseload_server.security import api_keys, file_reload
from caseload_server.security.keys_file import Callers
from structlog.testing import capture_logs

from tests.observability.metrics_client import page
from tests.security.server_fixture import KeysFile, Metadata, bearer, logging, serving
from tests.support.servers import refusal
from tests.support.waiting import HUNG_SECONDS, FakeClock, eventually

GET = pb.GetTherapistRequest(therapist_id="t1")


@pytest.fixture
def server(tmp_path: Path, keys_file: KeysFile, monkeypatch: pytest.MonkeyPatch) -> Iterator[CaseloadServer]:
    """A server that checks its files for changes on every call."""
    monkeypatch.setattr(file_reload, "CHECK_INTERVAL_SECONDS", 0.0)
    with serving(tmp_path, keys_file=keys_file.path) as started:
        yield started


@pytest.fixture
def therapists(server: CaseloadServer) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as channel:
        yield TherapistServiceStub(channel)


def reason(therapists: Any, metadata: Metadata) -> str:
    """The error reason of a Get of an unknown therapist."""
    with pytest.raises(grpc.RpcError) as caught:
        therapists.GetTherapist(GET, metadata=metadata)
    found = refusal(caught.value)
    if found.reason == "UNAUTHENTICATED":
        assert found.code == grpc.StatusCode.UNAUTHENTICATED
        assert found.metadata == {}
    return found.reason


def test_a_caller_with_a_key_is_authenticated(therapists: Any, keys_file: KeysFile) -> None:
    token = keys_file.add("billing")
    assert reason(therapists, bearer(token)) == "THERAPIST_NOT_FOUND"
    for credentials in (f"bearer {token}", f"BEARER {token}", f"Bearer  {token}", f"bEARER    {token}"):
        assert reason(therapists, (("authorization", credentials),)) == "THERAPIST_NOT_FOUND"


def test_a_caller_without_a_valid_key_is_unauthenticated(therapists: Any, keys_file: KeysFile) -> None:
    token = keys_file.add("billing")
    keys_file.append("dns:a-certificate read,write,audit")
    strangers = [
        (),
        bearer(""),
        bearer(token[:-1]),
        bearer(token + "x"),
        (("authorization", f" Bearer{token}"),),
        bearer("a-certificate"),
        bearer("dns:a-certificate"),
        bearer("billing"),
        (("authorization", token),),
        (("authorization", f"Basic {token}"),),
        (("x-authorization", f"Bearer {token}"),),
        bearer("unknown") + bearer(token),
    ]
    assert [reason(therapists, metadata) for metadata in strangers] == ["UNAUTHENTICATED"] * len(strangers)


def test_the_name_of_the_caller_is_stored(server: CaseloadServer, therapists: Any, keys_file: KeysFile) -> None:
    ann, bob = bearer(keys_file.add("ann")), bearer(keys_file.add("bob"))
    made = therapists.CreateTherapist(pb.CreateTherapistRequest(therapist=Therapist(display_name="A")), metadata=ann)
    therapists.DeleteTherapist(pb.DeleteTherapistRequest(therapist_id=made.therapist.therapist_id), metadata=bob)
    with grpc.insecure_channel(server.address) as channel:
        log = ChangeServiceStub(channel).ListChanges(change_pb.ListChangesRequest(), metadata=ann)
    assert [one.actor for one in log.change_sets] == ["ann", "bob"]


def test_request_ids_are_separate_for_each_caller(therapists: Any, keys_file: KeysFile) -> None:
    request = pb.CreateTherapistRequest(
        therapist=Therapist(display_name="A"), request_id="0190a3c4-0000-7000-8000-000000000001"
    )
    ids = {
        therapists.CreateTherapist(request, metadata=bearer(token)).therapist.therapist_id
        for token in (keys_file.add("ann"), keys_file.add("bob"))
        for _ in range(2)
    }
    assert len(ids) == 2


def test_a_key_is_rotated_without_a_rejected_call(therapists: Any, keys_file: KeysFile) -> None:
    old = keys_file.add("billing")
    assert reason(therapists, bearer(old)) == "THERAPIST_NOT_FOUND"
    new = keys_file.add("billing")
    assert reason(therapists, bearer(old)) == reason(therapists, bearer(new)) == "THERAPIST_NOT_FOUND"
    keys_file.replace(keys_file.path.read_text().splitlines()[1] + "\n")
    assert reason(therapists, bearer(old)) == "UNAUTHENTICATED"
    assert reason(therapists, bearer(new)) == "THERAPIST_NOT_FOUND"


@pytest.mark.parametrize("fault", ["missing", "mode", "too large", "a directory", "a pipe"])
def test_a_keys_file_that_cannot_be_read_keeps_the_previous_callers_and_is_logged_once(
    therapists: Any, keys_file: KeysFile, fault: str
) -> None:
    token = keys_file.add("billing")
    assert reason(therapists, bearer(token)) == "THERAPIST_NOT_FOUND"
    with capture_logs() as logs:
        if fault == "missing":
            keys_file.path.unlink()
        elif fault == "mode":
            keys_file.path.chmod(0o644)
        elif fault == "a directory":
            keys_file.path.unlink()
            keys_file.path.mkdir()
        elif fault == "a pipe":
            keys_file.path.unlink()
            os.mkfifo(keys_file.path, 0o600)
        else:
            keys_file.replace("do-not-repeat-me" * 100_000)
        for _ in range(5):
            assert reason(therapists, bearer(token)) == "THERAPIST_NOT_FOUND"
            assert reason(therapists, bearer("unknown")) == "UNAUTHENTICATED"
    [line] = logs
    assert (line["log_level"], line["fault"].partition(":")[0]) == ("error", "--keys-file")
    assert "do-not-repeat-me" not in str(logs)


def test_a_faulty_line_keeps_no_removed_key_valid(therapists: Any, keys_file: KeysFile) -> None:
    removed, stays = keys_file.add("removed"), keys_file.add("stays", "read")
    assert reason(therapists, bearer(removed)) == "THERAPIST_NOT_FOUND"
    remaining = keys_file.path.read_text().splitlines()[1]
    added, added_line = api_keys.generate_key("added", ["read"])
    with capture_logs() as logs:
        keys_file.replace(f"do-not-repeat-me\n{remaining}\n{added_line}\n")
        assert reason(therapists, bearer(removed)) == "UNAUTHENTICATED"
        assert reason(therapists, bearer(stays)) == reason(therapists, bearer(added)) == "THERAPIST_NOT_FOUND"
    faulty, changed, _ = logs
    assert (faulty["log_level"], faulty["event"], faulty["count"]) == ("error", "keys file has faults", 1)
    assert faulty["faults"][0].startswith("line 1: ")
    assert (changed["event"], changed["added"], changed["removed"]) == ("callers changed", ["added"], ["removed"])
    assert "do-not-repeat-me" not in str(logs)


def test_changed_permissions_are_logged_with_the_name_of_the_caller(therapists: Any, keys_file: KeysFile) -> None:
    token, line = api_keys.generate_key("billing", ["read"])
    keys_file.append(line)
    assert reason(therapists, bearer(token)) == "THERAPIST_NOT_FOUND"
    with capture_logs() as logs:
        keys_file.replace(line.replace("read", "write"))
        assert reason(therapists, bearer(token)) == "PERMISSION_DENIED"
    assert [(one["event"], one.get("changed")) for one in logs] == [
        ("callers changed", ["billing"]),
        ("files reloaded", None),
    ]


def test_the_state_of_the_keys_file_is_known_without_a_call(
    keys_file: KeysFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_reload, "CHECK_INTERVAL_SECONDS", 0.0)
    callers = Callers(keys_file.path)
    states = [callers.is_file_ok()]
    for content in ("billing", "", None):
        keys_file.path.unlink() if content is None else keys_file.replace(content)
        states.append(callers.is_file_ok())
    assert states == [True, False, True, False]


def test_a_key_is_rejected_from_its_expiry_on(therapists: Any, keys_file: KeysFile) -> None:
    token, line = api_keys.generate_key("billing", ["read"])
    keys_file.replace(f"{line} expires:2999-01-01T00:00:00Z\n")
    assert reason(therapists, bearer(token)) == "THERAPIST_NOT_FOUND"
    keys_file.replace(f"{line} expires:2020-01-01T00:00:00+01:00\n")
    assert reason(therapists, bearer(token)) == "UNAUTHENTICATED"


def test_the_access_log_and_a_metric_say_why_a_call_is_unauthenticated(tmp_path: Path, keys_file: KeysFile) -> None:
    token, line = api_keys.generate_key("billing", ["read"])
    keys_file.append(f"{line} expires:2020-01-01T00:00:00Z")
    with logging(tmp_path, keys_file=keys_file.path, metrics_address="127.0.0.1:0") as (server, _, log):
        with grpc.insecure_channel(server.address) as channel:
            for metadata in ((), bearer("unknown"), bearer(token)):
                assert reason(TherapistServiceStub(channel), metadata) == "UNAUTHENTICATED"
        lines = eventually(lambda: log.lines()[2:] and log.lines())
        assert [one["cause"] for one in lines] == ["no_credentials", "unknown_key", "expired_key"]
        assert token not in str(lines)
        metrics = page(server.metrics_address)
    assert {f'caseload_unauthenticated_total{{cause="{one["cause"]}"}} 1.0' for one in lines} <= {*metrics.splitlines()}
    assert 'caseload_unauthenticated_total{cause="expired_certificate"} 0.0' in metrics
    assert "caseload_keys_file_ok 1.0" in metrics


def test_a_changed_keys_file_is_reloaded_within_one_second(tmp_path: Path) -> None:
    assert file_reload.CHECK_INTERVAL_SECONDS <= 1
    clock, file = FakeClock(), tmp_path / "keys"
    file.write_text("old")
    read = file_reload.ReloadedFiles([file], file.read_text, clock)
    file.write_text("changed")
    clock.advance(file_reload.CHECK_INTERVAL_SECONDS * 0.9)
    assert read.value() == "old"
    clock.advance(file_reload.CHECK_INTERVAL_SECONDS * 0.1)
    assert read.value() == "changed"


def test_a_file_that_does_not_respond_keeps_the_last_good_value_and_blocks_no_reader(tmp_path: Path) -> None:
    file, clock, responds = tmp_path / "file", FakeClock(), threading.Event()
    file.write_text("old")
    responds.set()
    read = file_reload.ReloadedFiles([file], lambda: responds.wait(HUNG_SECONDS) and file.read_text(), clock)
    responds.clear()
    file.write_text("changed")
    for _ in range(3):
        clock.advance(file_reload.CHECK_INTERVAL_SECONDS)
        assert read.value() == "old"
    assert read.is_failing()  # a metric and an alert say that a change has no effect
    responds.set()
    eventually(lambda: read.value() == "changed")
    assert not read.is_failing()


def test_a_reload_that_fails_by_a_defect_is_reported_and_tried_again(tmp_path: Path) -> None:
    file, clock = tmp_path / "file", FakeClock()
    file.write_bytes(b"old")
    read = file_reload.ReloadedFiles([file], file.read_text, clock)
    file.write_bytes(b"\xff")
    clock.advance(file_reload.CHECK_INTERVAL_SECONDS)
    with capture_logs() as logs:
        assert read.value() == "old"
    assert ([line["fault"] for line in logs], read.is_failing()) == (["a defect: UnicodeDecodeError"], True)
    file.write_bytes(b"changed")
    clock.advance(file_reload.CHECK_INTERVAL_SECONDS)
    assert (read.value(), read.is_failing()) == ("changed", False)


def test_a_reload_that_cannot_start_a_thread_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock = tmp_path / "file", FakeClock()
    file.write_text("old")
    read = file_reload.ReloadedFiles([file], file.read_text, clock)
    file.write_text("changed")
    clock.advance(file_reload.CHECK_INTERVAL_SECONDS)
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", _no_thread)
        assert read.value() == "old"
    assert read.value() == "changed"


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError


def test_a_removed_key_is_rejected(tmp_path: Path, keys_file: KeysFile) -> None:
    token = keys_file.add("billing")
    with serving(tmp_path, keys_file=keys_file.path) as server, grpc.insecure_channel(server.address) as channel:
        therapists = TherapistServiceStub(channel)
        assert reason(therapists, bearer(token)) == "THERAPIST_NOT_FOUND"
        keys_file.replace("")
        eventually(lambda: reason(therapists, bearer(token)) == "UNAUTHENTICATED")


def test_without_a_keys_file_every_loopback_caller_is_local(tmp_path: Path) -> None:
    with serving(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        request = pb.CreateTherapistRequest(therapist=Therapist(display_name="A"))
        TherapistServiceStub(channel).CreateTherapist(request, metadata=bearer("whatever"))
        log = ChangeServiceStub(channel).ListChanges(change_pb.ListChangesRequest())
    assert [one.actor for one in log.change_sets] == ["local"]
