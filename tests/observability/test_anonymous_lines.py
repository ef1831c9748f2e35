"""Calls without a known caller add a limited number of lines to the logs, and the others are counted."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1 import patient_service_pb2 as pb
from caseload_server.domain.limits import MAX_ANONYMOUS_LINES
from caseload_server.observability import anonymous_lines
from caseload_server.observability.anonymous_lines import AnonymousLines
from caseload_server.rpc.server import CaseloadServer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.docs.doc_blocks import OPERATIONS
from tests.observability.metrics_client import Numbers, page
from tests.security.server_fixture import KeysFile, LogReader, Metadata, bearer, logging
from tests.support.api_driver import ApiDriver, full_name
from tests.support.waiting import HUNG_SECONDS, eventually

LOGS_PAGE = OPERATIONS / "logs.md"
FLOOD = 3 * MAX_ANONYMOUS_LINES
Scene = tuple[CaseloadServer, ApiDriver, LogReader, Metadata]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    keys = KeysFile(tmp_path / "keys")
    credentials = bearer(keys.add("reader", "read"))
    with logging(tmp_path, keys_file=keys.path, metrics_address="127.0.0.1:0") as (server, api, reader):
        yield server, api, reader, credentials


def get(api: ApiDriver, metadata: Metadata) -> str:
    """Gets a patient that does not exist; returns the name of the status code."""
    ask: Any = api.channel.unary_unary(full_name("GetPatient"))
    with pytest.raises(grpc.RpcError) as caught:
        ask(pb.GetPatientRequest(patient_id="p1").SerializeToString(), metadata=metadata, timeout=HUNG_SECONDS)
    return str(caught.value.code().name)


def flood(api: ApiDriver, metadata: Metadata, count: int = FLOOD) -> float:
    """Makes this many calls; returns how many seconds they took."""
    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:  # fewer than the server's threads, so that no call is shed
        list(threads.map(lambda _: get(api, metadata), range(count)))
    return time.monotonic() - began


def calls_and_left_out(reader: LogReader, code: str) -> tuple[int, int]:
    """The lines of calls with this code, and the sum of the counts of those that were left out."""
    lines = [line for line in reader.lines() if line["code"] == code]
    events = Counter(line["event"] for line in lines)
    assert events.keys() <= {"call", "calls_left_out"}
    return events["call"], sum(line["count"] for line in lines if line["event"] == "calls_left_out")


@pytest.mark.slow
def test_a_flood_without_credentials_has_few_lines_and_a_count_of_the_rest(scene: Scene) -> None:
    server, api, reader, _ = scene
    with capture_logs() as events:
        seconds = flood(api, bearer("unknown"))
        eventually(lambda: sum(calls_and_left_out(reader, "UNAUTHENTICATED")) == FLOOD)
    written, left_out = calls_and_left_out(reader, "UNAUTHENTICATED")
    assert written <= MAX_ANONYMOUS_LINES * (seconds + 2)
    said = [event for event in events if event["event"] == "access log lines left out"]
    assert sum(event["count"] for event in said) == left_out
    assert len(said) <= seconds + 2
    counted = Numbers(page(server.metrics_address))
    assert counted("calls_total", code="UNAUTHENTICATED") == FLOOD


@pytest.mark.slow
def test_a_flood_of_known_callers_is_logged_completely(scene: Scene) -> None:
    _, api, reader, credentials = scene
    flood(api, credentials)
    assert calls_and_left_out(reader, "NOT_FOUND") == (FLOOD, 0)


@pytest.mark.slow
def test_a_flood_without_credentials_hides_no_health_check(scene: Scene) -> None:
    _, api, reader, _ = scene
    flood(api, ())
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    health.Check(health_pb2.HealthCheckRequest(), timeout=HUNG_SECONDS)
    assert calls_and_left_out(reader, "OK") == (1, 0)


@pytest.mark.slow
def test_a_stop_loses_no_count(tmp_path: Path) -> None:
    keys = KeysFile(tmp_path / "keys")
    keys.add("reader", "read")
    with capture_logs() as events, logging(tmp_path, keys_file=keys.path) as (_, api, reader):
        flood(api, ())
    written, left_out = calls_and_left_out(reader, "UNAUTHENTICATED")
    assert written + left_out == FLOOD
    assert sum(event["count"] for event in events if event["event"] == "access log lines left out") == left_out


def test_the_limit_is_that_of_a_second_and_of_a_code() -> None:
    now, counts = [0.0], list[tuple[str, int]]()
    lines = AnonymousLines(lambda code, count: counts.append((code, count)), lambda: now[0])

    def admitted(code: str) -> int:
        return sum(lines.admit(code) for _ in range(MAX_ANONYMOUS_LINES + 7))

    assert (admitted("A"), admitted("B"), admitted("A")) == (MAX_ANONYMOUS_LINES, MAX_ANONYMOUS_LINES, 0)
    now[0] = 0.99
    assert admitted("A") == 0
    now[0] = 1.0
    assert admitted("A") == MAX_ANONYMOUS_LINES
    lines.report()
    lines.report()
    assert sum(count for code, count in counts if code == "A") == 2 * MAX_ANONYMOUS_LINES + 4 * 7
    assert sum(count for code, count in counts if code == "B") == 7


@pytest.mark.slow
def test_the_documented_line_of_a_count_matches_a_real_line(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anonymous_lines, "MAX_ANONYMOUS_LINES", 0)
    _, api, reader, _ = scene
    get(api, ())
    eventually(lambda: calls_and_left_out(reader, "UNAUTHENTICATED") == (0, 1))
    [shown] = [line for line in LOGS_PAGE.read_text().splitlines() if line.startswith('{"event":"calls_left_out"')]
    assert list(json.loads(shown)) == list(reader.lines()[0])
