"""Calls whose credentials may be known soon: they wait without a thread, and are then authenticated again."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from caseload.v1 import therapist_service_pb2 as pb
from caseload.v1.therapist_service_pb2_grpc import TherapistServiceStub
from caseload_server.domain.errors import Unauthenticated
from caseload_server.security.auth import Auth
from caseload_server.security.principal import LOCAL, Principal

from tests.security.server_fixture import serving
from tests.support.servers import refusal
from tests.support.waiting import HUNG_SECONDS, eventually


class Issuer:
    """Knows no credentials at first."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.knows = False
        self.threads: set[int] = set()

    def authenticate(self, _context: object) -> Principal:
        self.threads.add(threading.get_ident())
        if self.knows:
            return LOCAL
        raise Unauthenticated("unknown_token_key", self.wait)

    def wait(self, callback: Callable[[], None]) -> bool:
        self.waiting.append(callback)
        return True

    def continue_all(self) -> None:
        for callback in self.waiting:
            callback()


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Issuer:
    found = Issuer()
    monkeypatch.setattr(Auth, "authenticate", lambda _auth, context: found.authenticate(context))
    return found


@pytest.fixture
def channel(tmp_path: Path, issuer: Issuer) -> Iterator[grpc.Channel]:  # noqa: ARG001 - before the server starts
    with serving(tmp_path) as server, grpc.insecure_channel(server.address) as opened:
        yield opened


def calls(channel: grpc.Channel, issuer: Issuer, number: int) -> list[Any]:
    """Calls that wait for their credentials."""
    get, request = TherapistServiceStub(channel).GetTherapist, pb.GetTherapistRequest(therapist_id="t1")
    made: list[Any] = [get.future(request, timeout=HUNG_SECONDS) for _ in range(number)]
    eventually(lambda: len(issuer.waiting) == number)
    return made


def test_waiting_calls_continue_in_the_thread_that_receives_calls(channel: grpc.Channel, issuer: Issuer) -> None:
    made = calls(channel, issuer, 20)
    issuer.knows = True
    issuer.continue_all()
    assert {refusal(call.exception()).reason for call in made} == {"THERAPIST_NOT_FOUND"}
    assert len(issuer.threads) == 1
    assert threading.get_ident() not in issuer.threads


def test_a_call_waits_once(channel: grpc.Channel, issuer: Issuer) -> None:
    made = calls(channel, issuer, 2)
    issuer.continue_all()
    assert {refusal(call.exception()).reason for call in made} == {"UNAUTHENTICATED"}
    assert len(issuer.waiting) == 2


def test_a_call_that_ends_while_it_waits_does_not_continue(channel: grpc.Channel, issuer: Issuer) -> None:
    [call] = calls(channel, issuer, 1)
    call.cancel()
    issuer.knows = True
    other: Any = TherapistServiceStub(channel).GetTherapist.future(pb.GetTherapistRequest(therapist_id="t1"))
    assert refusal(other.exception()).reason == "THERAPIST_NOT_FOUND"  # so the server has seen the end of the other
    issuer.continue_all()
    issuer.waiting.clear()
    issuer.knows = False
    [later] = calls(channel, issuer, 1)
    issuer.knows = True
    issuer.continue_all()
    assert refusal(later.exception()).reason == "THERAPIST_NOT_FOUND"
