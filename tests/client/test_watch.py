"""watch(): it resumes where that helps, and raises where it does not."""

import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.client import Caseload, connect, error_info
from caseload.client.watch import watch
from caseload.v1 import change_service_pb2 as pb
from caseload.v1 import patient_service_pb2 as patients
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.resources_pb2 import Patient
from caseload_server.rpc.server import CaseloadServer
from grpc import StatusCode

from tests.client.fake_server import FakeServer
from tests.security.server_fixture import serving
from tests.support.servers import free_address
from tests.support.waiting import eventually, join


@pytest.fixture
def caseload(server: CaseloadServer) -> Iterator[Caseload]:
    with connect(server.address) as connected:
        yield connected


def write(caseload: Caseload) -> str:
    request = patients.CreatePatientRequest(patient=Patient(display_name="Bob Ray"))
    return caseload.patients.CreatePatient(request).revision


def test_watch_yields_past_changes_and_then_new_ones(caseload: Caseload) -> None:
    start, second = write(caseload), write(caseload)
    answers = caseload.watch(start)
    assert [one.revision for one in next(answers).change_sets] == [second]
    third = write(caseload)
    assert next(answers).through_revision == third
    filtered = caseload.watch(start, pb.ChangeFilter(actor="other"))
    assert list(next(filtered).change_sets) == []


def first_answered(caseload: Caseload) -> Generator[pb.WatchChangesResponse, None, None]:
    """A watch that has started, as soon as the server has a free slot."""

    def start() -> Generator[pb.WatchChangesResponse, None, None] | None:
        answers = caseload.watch()
        with suppress(grpc.RpcError):
            next(answers)
            return answers
        return None

    found = eventually(start)
    assert found
    return found


def test_closing_a_watch_ends_it_on_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, max_watches=1) as server, connect(server.address) as caseload:
        for _ in range(3):  # the only slot becomes free a moment later
            answers = first_answered(caseload)
            answers.close()


def test_closing_the_client_ends_its_watches(caseload: Caseload) -> None:
    received: list[pb.WatchChangesResponse] = []
    thread = threading.Thread(target=lambda: received.extend(caseload.watch()))
    thread.start()
    eventually(lambda: received)
    caseload.close()
    join(thread)


def test_an_error_that_resuming_cannot_fix_is_raised(caseload: Caseload) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(caseload.watch("0123456789ab.1"))
    assert error_info(caught.value).reason == "REVISION_FOREIGN"


def test_an_invalid_key_raises_and_does_not_end_the_watch_silently(peer: FakeServer) -> None:
    with connect(peer.address, key=lambda: "") as caseload, pytest.raises(ValueError, match="key: "):
        next(caseload.watch())


def test_too_many_watches_is_raised_at_the_start(tmp_path: Path) -> None:
    with serving(tmp_path, max_watches=1) as server, connect(server.address) as caseload:
        first = caseload.watch()
        next(first)
        with pytest.raises(grpc.RpcError) as caught:
            next(caseload.watch())
        assert error_info(caught.value) == ("TOO_MANY_WATCHES", {"limit": "1"}, {}, None)


class RecordedWaits(threading.Event):
    """Records how long each wait was meant to be, and returns at once."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


@pytest.mark.parametrize("code", [StatusCode.UNAVAILABLE, StatusCode.CANCELLED])
def test_a_repeatedly_interrupted_watch_waits_longer_each_time(peer: FakeServer, code: StatusCode) -> None:
    peer.answer_with(*[(code, "-1")] * 8)
    closed = RecordedWaits()
    with grpc.insecure_channel(peer.address) as channel:
        next(watch(ChangeServiceStub(channel), pb.WatchChangesRequest(after_revision="0123456789ab.1"), closed))
    assert closed.waits == [pytest.approx(wait, rel=0.2) for wait in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5)]
    sent = {pb.WatchChangesRequest.FromString(attempt.data).after_revision for attempt in peer.attempts}
    assert sent == {"0123456789ab.1"}


@pytest.mark.parametrize("code", [StatusCode.INTERNAL, StatusCode.UNKNOWN])
def test_a_watch_that_a_proxy_resets_resumes_and_one_that_never_began_raises(
    peer: FakeServer, code: StatusCode
) -> None:
    with connect(peer.address) as caseload:
        began = caseload.watch()
        next(began)
        peer.answer_with(code)
        next(began)
        peer.answer_with(code)
        with pytest.raises(grpc.RpcError) as refused:
            next(caseload.watch())
    failed: Any = refused.value
    assert failed.code() == code


def test_a_watch_resumes_after_a_restart_and_logs_once_that_it_cannot_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("caseload.client.watch.REPORT_AFTER_SECONDS", 0.1)
    address = free_address()
    received: list[pb.WatchChangesResponse] = []
    with connect(address) as caseload:
        thread = threading.Thread(target=lambda: received.extend(caseload.watch()))
        thread.start()
        for _ in range(2):
            eventually(lambda: caplog.records)
            count = len(received)  # before the start: the first response may come at once, the next one is a heartbeat
            with serving(tmp_path, address=address):
                eventually(lambda count=count: len(received) > count)  # type: ignore[misc]  # bound now
            [record] = caplog.records
            caplog.clear()
            assert record.name == "caseload.client"
            assert record.getMessage().startswith("watch cannot connect, and tries again until it can: ")
    join(thread)


def test_a_watch_logs_once_that_a_server_rejects_it_again_and_again(
    peer: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    peer.answer_with(*[(StatusCode.UNAVAILABLE, "-1")] * 3)
    with connect(peer.address) as caseload:
        next(caseload.watch())
    assert [record.getMessage() for record in caplog.records] == [
        "watch cannot connect, and tries again until it can: UNAVAILABLE: scripted"
    ]
