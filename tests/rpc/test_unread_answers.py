"""Answers that a caller does not read are bounded, per connection and per caller."""

from typing import Any

import pytest
from caseload.v1 import therapist_service_pb2 as pb
from caseload_server.domain import errors, limits
from caseload_server.store import THERAPIST

from tests.hostile.http2_client import Http2Client
from tests.rpc.admission_scene import LIST, OK, RESOURCE_EXHAUSTED, Scene, status
from tests.security.server_fixture import bearer
from tests.support.api_driver import ApiDriver, full_name, request
from tests.support.waiting import HUNG_SECONDS, eventually


@pytest.fixture
def large_answers(scene: Scene) -> Scene:
    """The list of all therapists is larger than a small answer."""
    with ApiDriver(scene.address, alone=True) as api:
        create: Any = api.channel.unary_unary(full_name("CreateTherapist"))
        for number in range(3):
            annotations = {f"k{n}": "v" * 1000 for n in range(8)}
            therapist = {"display_name": f"Ann {number}", "annotations": annotations}
            message = pb.CreateTherapistRequest(therapist=therapist)  # type: ignore[arg-type]
            create(message.SerializeToString(), timeout=HUNG_SECONDS, metadata=bearer(scene.tokens["honest"]))
    return scene


def test_answers_that_are_not_taken_are_bounded_for_a_connection(
    large_answers: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTION_BYTES", 60_000)
    scene = large_answers
    with Http2Client(scene.address, window=0) as caller:
        headers = scene.headers(LIST, "other")
        held = [caller.call(headers, b"") for _ in range(2)]
        eventually(lambda: scene.admission._untaken[""] > 48_000)
        assert status(caller.await_end(caller.call(headers, b""))) == RESOURCE_EXHAUSTED
        assert not set(held) & caller.ended.keys()
        with Http2Client(scene.address) as next_one:  # on another connection of the same caller
            assert status(next_one.await_end(next_one.call(headers, b""))) == OK
    eventually(lambda: not scene.admission._untaken)


def create_large(scene: Scene, caller: Http2Client) -> bytes:
    """Creates a therapist whose response is not small. Returns the status."""
    therapist = {"display_name": "Ann", "annotations": {f"k{n}": "v" * 900 for n in range(8)}}
    message = request("CreateTherapist", therapist_id="large", therapist=therapist).SerializeToString()
    return status(caller.await_end(caller.call(scene.headers(full_name("CreateTherapist"), "other"), message)))


def test_a_write_that_has_committed_is_not_rejected_for_its_response(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTION_BYTES", 5000)
    with Http2Client(scene.address) as caller:
        assert create_large(scene, caller) == OK


def test_a_write_is_rejected_before_it_begins_while_its_caller_leaves_too_much_unread(
    large_answers: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = large_answers
    with Http2Client(scene.address, window=0) as caller:
        caller.call(scene.headers(LIST, "other"), b"")
        eventually(lambda: scene.admission._untaken[""] > 24_000)
        monkeypatch.setattr(limits, "MAX_CONNECTION_BYTES", 24_000)
        assert create_large(scene, caller) == RESOURCE_EXHAUSTED
        get: Any = scene.server.store.get
        with pytest.raises(errors.TherapistNotFound):
            get(THERAPIST, "large")


def test_answers_that_one_caller_does_not_take_leave_room_for_others(
    large_answers: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_UNTAKEN_BYTES", 120_000)
    scene = large_answers
    with Http2Client(scene.address, window=0) as caller:
        for _ in range(5):
            caller.call(scene.headers(LIST, "other"), b"")
        eventually(lambda: caller.ended)
        assert scene.admission._untaken["caller other"] <= 60_000
        with Http2Client(scene.address) as honest:
            assert status(honest.await_end(honest.call(scene.headers(LIST, "honest"), b""))) == OK


def test_an_answer_that_is_not_taken_in_time_is_dropped(large_answers: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STUCK_READER_SECONDS", 0.2)
    scene = large_answers
    with Http2Client(scene.address, window=0) as caller:
        assert b"CANCELLED" in caller.await_end(caller.call(scene.headers(LIST, "other"), b""))
        eventually(lambda: not scene.admission._untaken)
