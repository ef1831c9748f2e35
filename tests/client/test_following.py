"""follow(): a watch that comes back where that helps, and ends where it does not."""

import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.client import Caseload, connect, why
from caseload.client.calls import Calls
from caseload.client.following import follow
from caseload.v1 import change_service_pb2 as pb
from caseload.v1 import patient_service_pb2 as patients
from caseload.v1.change_service_pb2_grpc import ChangeServiceStub
from caseload.v1.resources_pb2 import Patient
from caseload_server.rpc.server import CaseloadServer
from grpc import StatusCode

from tests.client.answering import Answering
from tests.security.serving import serving
from tests.waiting import eventually, join


@pytest.fixture
def caseload(server: CaseloadServer) -> Iterator[Caseload]:
    with connect(server.address) as connected:
        yield connected


def write(caseload: Caseload) -> str:
    request = patients.CreatePatientRequest(patient=Patient(display_name="Bob Ray"))
    return caseload.patients.CreatePatient(request).revision


def test_it_sends_what_is_in_the_log_and_then_what_comes(caseload: Caseload) -> None:
    start, second = write(caseload), write(caseload)
    answers = caseload.follow(start)
    assert [one.revision for one in next(answers).change_sets] == [second]
    third = write(caseload)
    assert next(answers).through_revision == third
    filtered = caseload.follow(start, pb.ChangeFilter(actor="nobody"))
    assert list(next(filtered).change_sets) == []


def first_answered(caseload: Caseload) -> Generator[pb.WatchChangesResponse, None, None]:
    """A watch that has begun, as soon as there is a place for it."""

    def begun() -> Generator[pb.WatchChangesResponse, None, None] | None:
        answers = caseload.follow()
        with suppress(grpc.RpcError):
            next(answers)
            return answers
        return None

    found = eventually(begun)
    assert found
    return found


def test_one_that_is_dropped_ends_at_the_server_too(tmp_path: Path) -> None:
    with serving(tmp_path, max_watches=1) as server, connect(server.address) as caseload:
        for _ in range(3):  # there is one place only, and it becomes free a moment later
            answers = first_answered(caseload)
            answers.close()


def test_closing_the_connection_ends_it(caseload: Caseload) -> None:
    received: list[pb.WatchChangesResponse] = []
    thread = threading.Thread(target=lambda: received.extend(caseload.follow()))
    thread.start()
    eventually(lambda: received)
    caseload.close()
    join(thread)


def test_what_will_not_be_better_is_raised(caseload: Caseload) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(caseload.follow("0123456789ab.1"))
    assert why(caught.value).reason == "REVISION_FOREIGN"


def test_metadata_that_are_none_are_no_end(peer: Answering) -> None:
    closed = threading.Event()
    with grpc.insecure_channel(peer.address) as channel:
        calls: Any = Calls(channel, 10, [("x-trace", "1", "2")], closed)  # type: ignore[list-item]  # as an application may
        with pytest.raises(ValueError, match="unpack"):
            next(follow(ChangeServiceStub(calls), pb.WatchChangesRequest(), closed))


def test_that_there_is_no_place_is_raised_at_the_beginning(tmp_path: Path) -> None:
    with serving(tmp_path, max_watches=1) as server, connect(server.address) as caseload:
        first = caseload.follow()
        next(first)
        with pytest.raises(grpc.RpcError) as caught:
            next(caseload.follow())
        assert why(caught.value) == ("TOO_MANY_WATCHES", {"limit": "1"}, {}, None)


class Unhurried(threading.Event):
    """Notes how long it was to be waited for, and lets nobody wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


@pytest.mark.parametrize("code", [StatusCode.UNAVAILABLE, StatusCode.CANCELLED])
def test_one_that_is_cut_again_and_again_waits_longer_each_time(peer: Answering, code: StatusCode) -> None:
    peer.told(*[(code, "-1")] * 8)
    closed = Unhurried()
    with grpc.insecure_channel(peer.address) as channel:
        next(follow(ChangeServiceStub(channel), pb.WatchChangesRequest(after_revision="0123456789ab.1"), closed))
    assert closed.waits == [pytest.approx(wait, rel=0.2) for wait in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5)]
    sent = {pb.WatchChangesRequest.FromString(attempt.data).after_revision for attempt in peer.attempts}
    assert sent == {"0123456789ab.1"}
