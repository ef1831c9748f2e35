"""The access log has one line per call, with ids but no other request values."""

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1 import therapist_service_pb2 as pb
from caseload_server.domain.limits import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from caseload_server.rpc.server import CaseloadServer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.api.sample_values import full
from tests.docs.doc_blocks import OPERATIONS
from tests.observability.log_lines import lines_after, status_of
from tests.security.server_fixture import KeysFile, LogReader, await_writes, bearer, logging
from tests.support.api_driver import READS, RPCS, ApiDriver, full_name, new_request_id, request
from tests.support.waiting import HUNG_SECONDS, eventually
from tests.support.write_lock import holding_the_lock, wait_for_locks

HEALTH = "/grpc.health.v1.Health"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
GET = full_name("GetTherapist")
FIELDS = [
    *("event", "time", "caller", "on_behalf_of", "peer", "method", "code", "reason"),
    *("therapist_ids", "patient_ids", "assignment_ids", "request_id", "validate_only", "ms"),
]


def ended_calls(reader: LogReader) -> list[dict[str, Any]]:
    """The lines of calls that have ended."""
    return [line for line in reader.lines() if line["event"] == "call"]


def test_a_line_names_the_caller_the_method_and_the_records(
    logged: tuple[CaseloadServer, ApiDriver, LogReader],
) -> None:
    _, api, reader = logged
    api.therapists("t1")
    api.patients("p1")
    before, request_id = time.time(), new_request_id().upper()
    began = time.perf_counter()
    user = (("caseload-on-behalf-of", "jdoe"),)
    made = api.send(
        "AssignPatient", metadata=user, therapist_id="t1", patient_id="p1", request_id=request_id
    ).assignment
    callers_ms = (time.perf_counter() - began) * 1000
    line = lines_after(reader, 3)[-1]
    assert list(line) == [name for name in FIELDS if name not in {"reason", "validate_only"}]
    assert (line["event"], line["caller"], line["method"]) == ("call", "local", full_name("AssignPatient"))
    assert line["on_behalf_of"] == "jdoe"
    assert (line["code"], line["request_id"]) == ("OK", request_id.lower())
    assert (line["therapist_ids"], line["patient_ids"]) == (["t1"], ["p1"])
    assert line["assignment_ids"] == [made.assignment_id]
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", line["peer"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert time.strftime("%Y-%m-%dT%H:%M", time.gmtime(before)) <= line["time"]
    assert 0 < line["ms"] <= callers_ms


def test_a_rejected_call_names_its_reason_and_the_requested_records(
    logged: tuple[CaseloadServer, ApiDriver, LogReader],
) -> None:
    _, api, reader = logged
    assert status_of(lambda: api.send("GetPatient", patient_id="unknown")) == "NOT_FOUND"
    [line] = lines_after(reader, 1)
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "PATIENT_NOT_FOUND")
    assert line["patient_ids"] == ["unknown"]


def test_each_call_has_exactly_one_line(
    logged: tuple[CaseloadServer, ApiDriver, LogReader],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This holds for every outcome; the logged codes are those the callers received."""
    wait_for_locks(monkeypatch)
    server, api, reader = logged
    ask = api.channel.unary_unary
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    check = health_pb2.HealthCheckRequest
    codes: list[str] = []

    def call(method: str, data: bytes = b"") -> None:
        make: Any = ask(method)
        codes.append(status_of(lambda: make(data, timeout=HUNG_SECONDS)))

    api.therapists("t1")
    codes.append("OK")
    call(GET, pb.GetTherapistRequest(therapist_id="t1").SerializeToString())
    call(GET, pb.GetTherapistRequest(therapist_id="broken").SerializeToString())
    call(GET, pb.GetTherapistRequest(therapist_id="unwritable").SerializeToString())
    call(GET, b"\xff")
    call(GET)
    codes.append(status_of(lambda: health.Check(check())))
    codes.append(status_of(lambda: health.Check(check(service="unknown"))))
    call(f"{HEALTH}/Check", b"\xff")
    assert codes == [
        *("OK", "OK", "INTERNAL", "INTERNAL", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        *("OK", "NOT_FOUND", "INVALID_ARGUMENT"),
    ]
    codes += stream_codes(api, health, reader)
    codes += cancelled(server, api, f"sqlite:///{tmp_path}/caseload.db")
    lines_after(reader, len(codes) + 1)  # the watch has one more, from when it opened
    assert [line["code"] for line in ended_calls(reader)] == codes
    assert {line["caller"] for line in reader.lines() if not line["method"].startswith(HEALTH)} == {"local"}
    assert "do-not-repeat-me" not in reader.path.read_text() + "".join(capfd.readouterr())


def stream_codes(api: ApiDriver, health: Any, reader: LogReader) -> list[str]:
    """Calls change, health and reflection streams; some are rejected, some cancelled."""
    before = len(ended_calls(reader))

    def written(count: int) -> None:
        eventually(lambda: len(ended_calls(reader)) >= before + count)  # after the caller has cancelled

    watch = api.watch()
    next(watch)
    watch.cancel()
    written(1)
    assert status_of(lambda: next(api.watch("x.1"))) == "OUT_OF_RANGE"
    readiness = health.Watch(health_pb2.HealthCheckRequest())
    next(readiness)
    readiness.cancel()
    written(3)
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    assert list(reflection(api.channel).ServerReflectionInfo(iter([listing])))
    written(4)
    garbage: Any = api.channel.stream_stream(REFLECTION)
    assert status_of(lambda: list(garbage(iter([b"\xff"])))) == "INVALID_ARGUMENT"
    return ["CANCELLED", "OUT_OF_RANGE", "CANCELLED", "OK", "INVALID_ARGUMENT"]


def cancelled(server: CaseloadServer, api: ApiDriver, database: str) -> list[str]:
    """A call that its caller cancels while it waits for the lock of another process."""
    create: Any = api.channel.unary_unary(full_name("CreatePatient"))
    body = request("CreatePatient", patient={"display_name": "A"}).SerializeToString()
    store: Any = server.store
    with holding_the_lock(database):
        under_way = create.future(body, timeout=HUNG_SECONDS)
        await_writes(server, 1)
        eventually(lambda: store._database._group_commit._leaders)
        under_way.cancel()
        api.send("ListPatients")  # arrives after it on the same connection
    return ["OK", "CANCELLED"]


def test_unauthenticated_and_denied_calls_are_logged(tmp_path: Path) -> None:
    keys_file = KeysFile(tmp_path / "keys")
    reader_only = bearer(keys_file.add("reader", "read"))
    with logging(tmp_path, keys_file=keys_file.path) as (_, api, reader):
        for rpc, method in RPCS.items():
            make: Any = api.channel.unary_stream if method.server_streaming else api.channel.unary_unary
            data = full(method).SerializeToString()
            for metadata in ((), bearer("unknown"), reader_only):
                with suppress(grpc.RpcError):
                    answer = make(full_name(rpc))(data, metadata=metadata, timeout=HUNG_SECONDS)
                    list(answer if method.server_streaming else ())
        lines = lines_after(reader, 3 * len(RPCS))
    assert [line["method"] for line in lines[::3]] == [full_name(rpc) for rpc in RPCS]
    assert {(line["caller"], line["reason"]) for line in [*lines[::3], *lines[1::3]]} == {("", "UNAUTHENTICATED")}
    denied = [line for line in lines[2::3] if line.get("reason") == "PERMISSION_DENIED"]
    assert len(denied) == len(RPCS) - len(READS) + 5  # the methods that require audit
    assert {line["caller"] for line in lines[2::3]} == {"reader"}
    assert [line for line in [*lines[::3], *denied] if any(name.endswith("_ids") for name in line)] == []


def test_a_watch_has_a_line_when_it_opens_and_one_when_it_ends(
    logged: tuple[CaseloadServer, ApiDriver, LogReader],
) -> None:
    _, api, reader = logged
    watch = api.watch(patient_id="p1")
    next(watch)
    [opened] = reader.lines()
    assert list(opened) == ["event", "time", "caller", "peer", "method", "patient_ids"]
    assert (opened["event"], opened["caller"], opened["patient_ids"]) == ("stream_opened", "local", ["p1"])
    api.patients("p1")
    next(watch)
    watch.cancel()
    opened_again, _, ended = lines_after(reader, 3)
    assert opened_again == opened
    assert (ended["event"], ended["code"], ended["patient_ids"]) == ("call", "CANCELLED", ["p1"])
    assert [ended[name] for name in ("time", "peer", "method")] == [opened[name] for name in ("time", "peer", "method")]


def test_the_line_of_a_call_that_ended_before_has_the_address_of_its_connection(
    logged: tuple[CaseloadServer, ApiDriver, LogReader],
) -> None:
    """The library returns no address for a call that it has cancelled."""
    _, api, reader = logged
    api.therapists("t1")
    assert status_of(lambda: api.send("GetTherapist", therapist_id="cancelled")) == "CANCELLED"
    created, cancelled = lines_after(reader, 2)
    assert cancelled["peer"] == created["peer"]


def test_a_rejected_watch_has_one_line(logged: tuple[CaseloadServer, ApiDriver, LogReader]) -> None:
    _, api, reader = logged
    assert status_of(lambda: next(api.watch("x.1"))) == "OUT_OF_RANGE"
    [line] = lines_after(reader, 1)
    assert (line["event"], line["reason"]) == ("call", "REVISION_FOREIGN")


def test_calls_rejected_by_the_grpc_library_are_not_logged(logged: tuple[CaseloadServer, ApiDriver, LogReader]) -> None:
    """As docs/operations/logs.md says."""
    _, api, reader = logged
    unknown: Any = api.channel.unary_unary("/caseload.v1.PatientService/Unknown")
    get: Any = api.channel.unary_unary(GET)
    assert status_of(lambda: unknown(b"", timeout=HUNG_SECONDS)) == "UNIMPLEMENTED"
    assert status_of(lambda: get(b"x" * (MAX_MESSAGE_BYTES + 1), timeout=HUNG_SECONDS)) == "RESOURCE_EXHAUSTED"
    assert (
        status_of(lambda: get(b"", metadata=(("x", "x" * MAX_METADATA_BYTES),), timeout=HUNG_SECONDS))
        == "RESOURCE_EXHAUSTED"
    )
    api.therapists("t1")
    assert [line["code"] for line in lines_after(reader, 1)] == ["OK"]


def test_the_documented_line_matches_a_real_line(
    logged: tuple[CaseloadServer, ApiDriver, LogReader],
) -> None:
    _, api, reader = logged
    [shown] = re.findall(r'^\{"event":"call".*$', LOGS_PAGE.read_text(), re.MULTILINE)
    api.therapists("ada")
    api.patients("jane")
    api.send("DeletePatient", patient_id="jane")
    user = (("caseload-on-behalf-of", "jdoe"),)
    with suppress(grpc.RpcError):
        api.send("AssignPatient", metadata=user, therapist_id="ada", patient_id="jane", request_id=new_request_id())
    written = lines_after(reader, 4)[-1]
    same = ("event", "on_behalf_of", "method", "code", "reason", "therapist_ids", "patient_ids")
    documented = json.loads(shown)
    assert list(documented) == list(written)
    assert [documented[name] for name in same] == [written[name] for name in same]
    documented_fields = {
        name for row in FIELD_ROW.findall(LOGS_PAGE.read_text()) for name in re.findall(r"`(\w+)`", row)
    }
    assert documented_fields >= set(FIELDS)


LOGS_PAGE = OPERATIONS / "logs.md"
FIELD_ROW = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \|", re.MULTILINE)
