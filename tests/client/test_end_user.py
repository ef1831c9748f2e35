"""on_behalf_of: the end user, for all calls of a client or for one."""

import grpc
import pytest
from caseload.client import aio, connect, error_info, on_behalf_of
from caseload.client.metadata import ON_BEHALF_OF
from caseload.v1 import change_service_pb2, therapist_service_pb2
from caseload_server.domain.id_formats import ON_BEHALF_OF_PATTERN
from caseload_server.rpc.server import CaseloadServer
from caseload_server.security import on_behalf_of as server_side

from tests.client.aio.run import run
from tests.client.fake_server import FakeServer

GET = therapist_service_pb2.GetTherapistRequest(therapist_id="t1")
WATCH = change_service_pb2.WatchChangesRequest()


def test_the_user_of_a_connection_is_sent_with_each_call_unless_the_call_has_its_own(peer: FakeServer) -> None:
    with connect(peer.address, key="k", on_behalf_of="jdoe") as caseload:
        caseload.therapists.GetTherapist(GET)
        caseload.therapists.GetTherapist(GET, metadata=(("x-trace", "1"),))
        caseload.therapists.GetTherapist(GET, metadata=on_behalf_of("other"))
        list(caseload.changes.WatchChanges(WATCH))
    users = [attempt.metadata.get(ON_BEHALF_OF) for attempt in peer.attempts]
    assert users == ["jdoe", "jdoe", "other", "jdoe"]
    assert {attempt.metadata["authorization"] for attempt in peer.attempts} == {"Bearer k"}


def test_a_call_with_its_own_user_names_no_other(server: CaseloadServer) -> None:
    with (
        connect(server.address, on_behalf_of="jdoe") as caseload,
        pytest.raises(grpc.RpcError) as refused,  # with two users it would be INVALID_FIELD
    ):
        caseload.therapists.GetTherapist(GET, metadata=on_behalf_of("other"))
    assert error_info(refused.value).reason == "THERAPIST_NOT_FOUND"


def test_the_asyncio_client_does_the_same(peer: FakeServer) -> None:
    async def call() -> None:
        async with aio.connect(peer.address, on_behalf_of="jdoe") as caseload:
            await caseload.therapists.GetTherapist(GET)
            await caseload.therapists.GetTherapist(GET, metadata=aio.on_behalf_of("other"))

    run(call())
    assert [attempt.metadata.get(ON_BEHALF_OF) for attempt in peer.attempts] == ["jdoe", "other"]


def test_a_call_can_have_a_user_where_the_connection_has_none(peer: FakeServer) -> None:
    with connect(peer.address) as caseload:
        caseload.therapists.GetTherapist(GET)
        caseload.therapists.GetTherapist(GET, metadata=on_behalf_of("jdoe"))
    assert [attempt.metadata.get(ON_BEHALF_OF) for attempt in peer.attempts] == [None, "jdoe"]


@pytest.mark.parametrize("user_id", ["", "Ann Lee", "ann@example.org", "a" * 129, "a\n", "J\u00e4ne"])
def test_an_id_that_the_server_would_reject_is_refused_without_repeating_it(user_id: str) -> None:
    assert not ON_BEHALF_OF_PATTERN.fullmatch(user_id)
    for use in (on_behalf_of, lambda user: connect("127.0.0.1:1", on_behalf_of=user)):
        with pytest.raises(ValueError, match="on_behalf_of: must be 1 to 128 of") as refused:
            use(user_id)
        assert not user_id or user_id not in str(refused.value)


def test_the_client_and_the_server_agree_on_the_key_and_the_form() -> None:
    assert ON_BEHALF_OF == server_side.METADATA_KEY
    for user_id in ("jdoe", "J.Doe_1:realm-2", "a" * 128):
        assert ON_BEHALF_OF_PATTERN.fullmatch(user_id)
        assert on_behalf_of(user_id) == ((ON_BEHALF_OF, user_id),)
